/*
 * Keeps SIGPIPE from a thread that belongs to the program, while it runs code
 * of other libraries that may write to a closed connection.
 */
#ifndef VNXI_BASE_SIGPIPE_H
#define VNXI_BASE_SIGPIPE_H

#include <signal.h>
#include <stdbool.h>

typedef struct vnxi_sigpipe {
    sigset_t mask;   /* of the thread, before */
    bool is_pending; /* one that the program had not handled by then */
} vnxi_sigpipe_t;

/* Block the signal in this thread. */
void vnxi_sigpipe_block(vnxi_sigpipe_t *before_p);

/* Drop the signal if it was raised since then, and restore the mask.  Keeps
 * errno. */
void vnxi_sigpipe_restore(const vnxi_sigpipe_t *before);

#endif
