/*
 * Runs a fuzz target over every file of a folder, without libFuzzer.
 *
 *   NAME_replay FOLDER
 */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>

#define INPUT_MAX (1 << 20)

static void
fail(const char *what)
{
    perror(what);
    exit(1);
}

static void
replay(const char *folder, const char *name)
{
    char path[4096];
    uint8_t *data;
    size_t size;
    FILE *file;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "rb");
    data = malloc(INPUT_MAX);
    if (file == NULL || data == NULL) {
        fail(path);
    }
    size = fread(data, 1, INPUT_MAX, file);
    if (ferror(file)) {
        fail(path);
    }
    fclose(file);
    /* A block of the exact size, so that ASan detects a read past its end. */
    data = realloc(data, size > 0 ? size : 1);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
}

int
main(int argc, char **argv)
{
    struct dirent *entry;
    int count = 0;
    DIR *folder;

    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    folder = opendir(argv[1]);
    if (folder == NULL) {
        fail(argv[1]);
    }
    while ((entry = readdir(folder)) != NULL) {
        if (entry->d_name[0] != '.') {
            replay(argv[1], entry->d_name);
            count++;
        }
    }
    closedir(folder);
    printf("%d inputs\n", count);
    return count > 0 ? 0 : 1;
}
