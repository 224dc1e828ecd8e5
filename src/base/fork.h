/*
 * Forked children.  Threads and connections to peers do not survive a fork,
 * and a lock may stay held forever in the child.  So every object that owns
 * such things records the fork count when it is created.  If the count differs
 * later, the object belongs to the parent: calls fail and releases do nothing.
 */
#ifndef VNXI_BASE_FORK_H
#define VNXI_BASE_FORK_H

#include <stdbool.h>

extern unsigned vnxi_fork_count_; /* written in a new child only */

/* The number of forks between the first process that used the library and this
 * one. */
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

/* Run `hook` in every forked child before fork() returns there.  The hook must
 * be async-signal-safe.  At most 32 hooks; idempotent. */
void vnxi_fork_on_child(void (*hook)(void));

#endif
