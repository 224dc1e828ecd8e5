#include "engine/native/shm/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PF_EXITING 0x4 /* proc(5): the kernel's PF_* in field 9 */

enum { FIELD_STATE = 3, FIELD_FLAGS = 9, FIELD_START_TIME = 22 };

/* Find a field by its number in proc(5), from 3 on; NULL: not there.  Field 2
 * is the name in parentheses and may contain any bytes: count from the last
 * ')'. */
static const char *
find_field(const char *text, int number)
{
    const char *at = strrchr(text, ')');

    for (int field = 2; at != NULL && field < number; field++) {
        at = strchr(at + 1, ' ');
    }
    return at == NULL ? NULL : at + 1;
}

static bool
parse(const char *text, vnxi_proc_stat_t *stat_p)
{
    const char *state = find_field(text, FIELD_STATE);
    const char *flags = find_field(text, FIELD_FLAGS);
    const char *start_time = find_field(text, FIELD_START_TIME);
    char *end;

    if (start_time == NULL) {
        return false;
    }
    unsigned long long ticks = strtoull(start_time, &end, 10);
    if (end == start_time) {
        return false;
    }
    stat_p->start_time = ticks;
    stat_p->exiting = *state == 'Z' || *state == 'X' ||
                      (strtoul(flags, NULL, 10) & PF_EXITING) != 0;
    return true;
}

int
vnxi_proc_stat(pid_t pid, vnxi_proc_stat_t *stat_p)
{
    char path[32], text[1024];

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? ESRCH : errno;
    }
    ssize_t len = read(fd, text, sizeof text - 1);
    int failure = len < 0 ? errno : len == 0 ? ESRCH : 0;
    close(fd);
    if (failure != 0) {
        return failure;
    }
    text[len] = '\0';
    return parse(text, stat_p) ? 0 : EINVAL;
}
