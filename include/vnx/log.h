/*
 * The library's log.
 *
 * Each line has a level, the time of the event, the thread that met it, the
 * agent that it concerns (if one does) and a text.  Without a function of the
 * program, the library writes each line to stderr:
 *
 *     2026-11-29 19:47:56.123 WARNING vllm_nixl[4711] prefill-0: ...
 *
 * Nothing is logged for a transfer or a notification.  A call that returns an
 * error record does not log the error as well.
 *
 * If one place of the library writes more than 10 lines in 10 seconds (200 at
 * VNX_LOG_DEBUG), the rest are suppressed.  The last line before says so, and
 * the first line after says how many there were.
 */
#ifndef VNX_LOG_H
#define VNX_LOG_H

#include <stdint.h>
#include <vnx/error.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum vnx_log_level {
    VNX_LOG_OFF = 0, /* as a threshold: nothing is logged */
    VNX_LOG_ERROR,   /* something is lost for good, and no call reports it */
    VNX_LOG_WARNING, /* it works, but not as the user probably wants */
    VNX_LOG_INFO,    /* rare events of normal operation: a peer has ended */
    VNX_LOG_DEBUG,   /* routes, connections, retries, metadata */
} vnx_log_level_t;

typedef struct vnx_log_line {
    vnx_log_level_t level;
    uint64_t time_ns;  /* since 1970 (CLOCK_REALTIME) */
    int64_t thread;    /* the kernel's id of the thread (gettid) */
    const char *agent; /* the agent's name; NULL: it concerns no agent.  At
                          most 127 bytes, as in error records */
    const char *text;  /* one line, without a newline.  UTF-8, if the names in
                          it are */
} vnx_log_line_t;

/*
 * A function that gets the lines.  `line` and its texts are valid during the
 * call only.
 *
 * The library calls it on any thread, on its own threads too, and one call at
 * a time.  The calling thread may hold locks of the library.  So the function
 * must be quick, must not wait for another thread that uses the library, and
 * must not call the library, except for vnx_log_format() and the other
 * functions of this header.  Lines that it causes itself go to stderr.
 *
 * In a forked child it is called too.
 */
typedef void (*vnx_log_function_t)(void *context, const vnx_log_line_t *line);

/* Set the function that gets the lines; NULL: stderr.  When this returns, the
 * previous function is not running and is not called again, so that its
 * context may be freed -- unless this is called by that function itself. */
void vnx_log_set(vnx_log_function_t function, void *context);

/* Log lines of this level and those above.  Initially the level is that of
 * the environment variable VLLM_NIXL_LOG_LEVEL, else of NIXL_LOG_LEVEL, else
 * VNX_LOG_WARNING.  The values are ERROR, WARNING, INFO and DEBUG, NIXL's
 * WARN, TRACE (DEBUG) and FATAL, and CRITICAL (both: off), in upper or lower
 * case.  They are read once.  An unknown value is reported with the first
 * line. */
void vnx_log_set_level(vnx_log_level_t level);
vnx_log_level_t vnx_log_level(void);

/* Log the error of a call as a warning about `agent` (NULL: about none).  For
 * programs that pass on less than the record.  May be called after any call of
 * the library, but not by a function of vnx_log_set(). */
void vnx_log_error(const char *agent, const vnx_error_t *error);

/* "WARNING".  Static storage; NULL for an unknown level. */
const char *vnx_log_level_name(vnx_log_level_t level);

/* Format a line as the library writes it to stderr, without the newline.
 * Writes at most `size` bytes, including the final NUL.  Returns the length of
 * the full text, like snprintf. */
int vnx_log_format(const vnx_log_line_t *line, char *buffer, int size);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
