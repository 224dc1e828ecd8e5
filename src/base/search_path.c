#include "base/search_path.h"

#include <dlfcn.h>
#include <glob.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fork.h"
#include "base/mutex.h"

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_SEARCH_PATH);
static char **directories; /* protected by lock, as below */
static size_t directory_count;

static void
free_all(char **dirs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(dirs[i]);
    }
    free(dirs);
}

/* NULL: no memory. */
static char **
copy_all(const char *const *dirs, size_t count)
{
    char **copy = calloc(count + 1, sizeof *copy);

    for (size_t i = 0; copy != NULL && i < count; i++) {
        copy[i] = strdup(dirs[i]);
        if (copy[i] == NULL) {
            free_all(copy, i);
            return NULL;
        }
    }
    return copy;
}

static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_SEARCH_PATH);
}

bool
vnxi_search_path_set(const char *const *dirs, size_t count)
{
    char **copy = copy_all(dirs, count);
    if (copy == NULL) {
        return false;
    }
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&lock);
    char **old = directories;
    size_t old_count = directory_count;
    directories = copy;
    directory_count = count;
    vnxi_mutex_unlock(&lock);
    free_all(old, old_count);
    return true;
}

/* The folder of the Python packages among which this library is, for programs
 * that have no Python and load it from there.  Owned; NULL: it is elsewhere.
 */
static char *
own_directory(void)
{
    Dl_info info;
    char *file =
        dladdr(&lock, &info) != 0 ? realpath(info.dli_fname, NULL) : NULL;
    char *package = file != NULL ? dirname(file) : NULL; /* in `file` */
    const char *name = package != NULL ? strrchr(package, '/') : NULL;
    char *found = name != NULL && strcmp(name, "/vllm_nixl") == 0
                      ? strdup(dirname(package))
                      : NULL;
    free(file);
    return found;
}

/* Escape the characters of a directory name that are special to glob(). */
static size_t
escape(const char *text, char *target)
{
    size_t used = 0;
    for (; *text != '\0'; text++) {
        if (strchr("*?[]\\", *text) != NULL) {
            target[used++] = '\\';
        }
        target[used++] = *text;
    }
    target[used] = '\0';
    return used;
}

static char *
find_in(const char *directory, const char *pattern)
{
    size_t size = 2 * strlen(directory) + strlen(pattern) + 2;
    char *whole = malloc(size), *found = NULL;
    glob_t matches = {0};

    if (whole == NULL) {
        return NULL;
    }
    size_t used = escape(directory, whole);
    snprintf(whole + used, size - used, "/%s", pattern);
    if (glob(whole, 0, NULL, &matches) == 0 && matches.gl_pathc > 0) {
        found = strdup(matches.gl_pathv[0]);
    }
    globfree(&matches);
    free(whole);
    return found;
}

char *
vnxi_search_path_find(const char *pattern)
{
    char *found = NULL;

    /* Looking into folders of a network takes long: not under the lock. */
    vnxi_mutex_lock(&lock);
    bool is_set = directories != NULL;
    size_t count = directory_count;
    char **dirs = copy_all((const char *const *)directories, directory_count);
    vnxi_mutex_unlock(&lock);
    if (!is_set) {
        char *own = own_directory();
        found = own != NULL ? find_in(own, pattern) : NULL;
        free(own);
    }
    for (size_t i = 0; dirs != NULL && i < count && found == NULL; i++) {
        found = find_in(dirs[i], pattern);
    }
    if (dirs != NULL) {
        free_all(dirs, count);
    }
    return found;
}
