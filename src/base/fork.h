/*
 * Forked children.  Threads and the peers' sockets do not survive a fork, and
 * a lock may be held for ever in the child.  So every object that owns such
 * things notes the fork count at its making; where the count differs, the
 * object belongs to the parent, calls refuse and releases do nothing.
 */
#ifndef VNXI_BASE_FORK_H
#define VNXI_BASE_FORK_H

#include <stdbool.h>

extern unsigned vnxi_fork_count_; /* written in a new child only */

/* The forks between the first process that used the library and this one. */
static inline unsigned
vnxi_fork_count(void)
{
    return vnxi_fork_count_;
}

static inline bool
vnxi_fork_crossed(unsigned count_at_making)
{
    return __builtin_expect(count_at_making != vnxi_fork_count_, 0);
}

/* Run `hook` in every forked child, before fork() returns there; only what is
 * async-signal-safe may be done.  At most 32 hooks; idempotent. */
void vnxi_fork_on_child(void (*hook)(void));

#endif
