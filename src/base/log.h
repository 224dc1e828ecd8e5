/*
 * The library's side of the log: vnx/log.h.
 *
 * Never call this on a hot path: not per transfer, not per notification.  Log
 * a problem where it is detected, and only if no caller gets it as an error
 * record.
 */
#ifndef VNXI_BASE_LOG_H
#define VNXI_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>
#include <vnx/log.h>

/* How many lines a place has written; guarded by the log's lock.  Initially
 * zero. */
typedef struct vnxi_log_site {
    uint64_t since; /* CLOCK_MONOTONIC */
    unsigned lines;
    unsigned suppressed;
} vnxi_log_site_t;

/* Log a line about `agent` (a name; NULL: no agent).  Control characters in
 * names and texts become '?'. */
#define vnxi_log(level, agent, ...)                         \
    do {                                                    \
        static vnxi_log_site_t site_;                       \
        vnxi_log_at(&site_, (level), (agent), __VA_ARGS__); \
    } while (0)

/* The same for a place that writes lines of many kinds. */
void vnxi_log_at(vnxi_log_site_t *site, vnx_log_level_t level,
                 const char *agent, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Write a line to stderr.  For functions that get lines: any thread, also
 * inside vnx_log_set()'s function. */
void vnxi_log_write(const vnx_log_line_t *line);

/* Return whether the environment has set the level. */
bool vnxi_log_level_is_set(void);

#endif
