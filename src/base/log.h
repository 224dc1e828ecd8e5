/*
 * The log: each call writes one line to stderr, "vllm_nixl WARNING: ...".  The
 * level is read once from VLLM_NIXL_LOG_LEVEL: error, warning (default), info,
 * debug; another value causes a warning.  Never called on a hot path.  Log a
 * problem where it is detected, and only if no caller gets it as an error
 * record.
 */
#ifndef VNXI_BASE_LOG_H
#define VNXI_BASE_LOG_H

typedef enum {
    VNXI_LOG_ERROR,
    VNXI_LOG_WARNING,
    VNXI_LOG_INFO,
    VNXI_LOG_DEBUG
} vnxi_log_level_t;

void vnxi_log(vnxi_log_level_t level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
