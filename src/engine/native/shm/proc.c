#include "engine/native/shm/proc.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PF_EXITING 0x4 /* proc(5): the kernel's PF_* in field 9 */

bool
vnxi_proc_stat(pid_t pid, vnxi_proc_stat_t *stat_p)
{
    char path[32], text[1024], state;
    unsigned flags;
    uint64_t start_time;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t len = read(fd, text, sizeof text - 1);
    close(fd);
    if (len <= 0) {
        return false;
    }
    text[len] = '\0';
    /* The name may hold blanks and parentheses; the last one ends it. */
    const char *rest = strrchr(text, ')');
    if (rest == NULL ||
        sscanf(rest + 1,
               " %c %*d %*d %*d %*d %*d %u %*u %*u %*u %*u %*u %*u %*d %*d"
               " %*d %*d %*d %*d %" SCNu64,
               &state, &flags, &start_time) != 3) {
        return false;
    }
    stat_p->start_time = start_time;
    stat_p->exiting =
        state == 'Z' || state == 'X' || (flags & PF_EXITING) != 0;
    return true;
}
