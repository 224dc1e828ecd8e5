#include "engine/native/shm/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* -- Processes ------------------------------------------------------------ */

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
parse_stat(const char *text, vnxi_proc_stat_t *stat_p)
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
    return parse_stat(text, stat_p) ? 0 : EINVAL;
}

/* -- Mappings ------------------------------------------------------------- */

#define MAPS "/proc/self/maps"
#define MEMFD_PREFIX "/memfd:"

/* As in the kernel's documentation of PROCMAP_QUERY; in system headers since
 * Linux 6.11. */
typedef struct query {
    uint64_t size; /* of this struct */
    uint64_t query_flags;
    uint64_t query_addr;
    uint64_t vma_start, vma_end;
    uint64_t vma_flags;
    uint64_t vma_page_size;
    uint64_t vma_offset;
    uint64_t inode;
    uint32_t dev_major, dev_minor;
    uint32_t vma_name_size; /* of the buffer, then of the name */
    uint32_t build_id_size;
    uint64_t vma_name_addr;
    uint64_t build_id_addr;
} query_t;

_Static_assert(sizeof(query_t) == 104, "the kernel's layout");

#define QUERY _IOWR('f', 17, query_t)
#define QUERY_READABLE 0x01u
#define QUERY_WRITABLE 0x02u
#define QUERY_SHARED 0x08u

static bool
is_memfd_path(const char *path)
{
    return strncmp(path, MEMFD_PREFIX, sizeof(MEMFD_PREFIX) - 1) == 0;
}

int
vnxi_proc_vma_query(uint64_t addr, vnxi_proc_vma_t *vma_p)
{
    char name[4096] = "";
    query_t query = {
        .size = sizeof query,
        .query_addr = addr,
        .vma_name_size = sizeof name,
        .vma_name_addr = (uintptr_t)name,
    };
    int fd = open(MAPS, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno;
    }
    int failure = ioctl(fd, QUERY, &query) == 0 ? 0 : errno;
    close(fd);
    if (failure != 0) {
        return failure;
    }
    *vma_p = (vnxi_proc_vma_t){
        .start = query.vma_start,
        .end = query.vma_end,
        .offset = query.vma_offset,
        .st_dev = makedev(query.dev_major, query.dev_minor),
        .st_ino = query.inode,
        .shared = (query.vma_flags & QUERY_SHARED) != 0,
        .readable = (query.vma_flags & QUERY_READABLE) != 0,
        .writable = (query.vma_flags & QUERY_WRITABLE) != 0,
        .memfd = is_memfd_path(name),
    };
    return 0;
}

/* Parse a number and the character that follows it. */
static bool
take_number(const char **at, int base, char stop, uint64_t *value_p)
{
    char *end;
    uint64_t value = strtoull(*at, &end, base);
    if (end == *at || *end != stop) {
        return false;
    }
    *at = end + 1;
    *value_p = value;
    return true;
}

/* "7f0-7f1 rw-s 00000000 00:01 1029   /memfd:name (deleted)" */
static bool
parse_maps_line(const char *line, vnxi_proc_vma_t *vma_p)
{
    uint64_t major_number = 0, minor_number = 0;
    vnxi_proc_vma_t vma = {0};
    const char *at = line;
    if (!take_number(&at, 16, '-', &vma.start) ||
        !take_number(&at, 16, ' ', &vma.end) || strlen(at) < 5) {
        return false;
    }
    vma.readable = at[0] == 'r';
    vma.writable = at[1] == 'w';
    vma.shared = at[3] == 's';
    at += 5;
    if (!take_number(&at, 16, ' ', &vma.offset) ||
        !take_number(&at, 16, ':', &major_number) ||
        !take_number(&at, 16, ' ', &minor_number) ||
        !take_number(&at, 10, ' ', &vma.st_ino)) {
        return false;
    }
    vma.st_dev = makedev((unsigned)major_number, (unsigned)minor_number);
    vma.memfd = is_memfd_path(at + strspn(at, " "));
    *vma_p = vma;
    return true;
}

bool
vnxi_proc_vma_parse(uint64_t addr, vnxi_proc_vma_t *vma_p)
{
    FILE *maps = fopen(MAPS, "re");
    if (maps == NULL) {
        return false;
    }
    char *line = NULL;
    size_t capacity = 0;
    bool found = false;
    while (!found && getline(&line, &capacity, maps) > 0) {
        vnxi_proc_vma_t vma;
        if (parse_maps_line(line, &vma) && addr >= vma.start &&
            addr < vma.end) {
            *vma_p = vma;
            found = true;
        }
    }
    free(line);
    fclose(maps);
    return found;
}

bool
vnxi_proc_vma_find(uint64_t addr, vnxi_proc_vma_t *vma_p)
{
    static atomic_bool no_query; /* set by the first call */
    if (!atomic_load_explicit(&no_query, memory_order_relaxed)) {
        int failure = vnxi_proc_vma_query(addr, vma_p);
        if (failure != ENOTTY && failure != EINVAL) {
            return failure == 0;
        }
        atomic_store_explicit(&no_query, true, memory_order_relaxed);
    }
    return vnxi_proc_vma_parse(addr, vma_p);
}
