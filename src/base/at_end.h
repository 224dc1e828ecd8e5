/*
 * The end of a process in which agents are left open.  Memory goes before they
 * do: an interpreter's objects, a library's statics.  So what touches it from
 * threads of its own stands still before that.
 */
#ifndef VNXI_BASE_AT_END_H
#define VNXI_BASE_AT_END_H

/* Have `hook` called when the process exits, once; not in a forked child.
 * What the hook needs of other libraries was loaded before this call: their
 * own ends come after it.  At most 8 hooks; idempotent. */
void vnxi_at_end_add(void (*hook)(void));

/* The end begins now: call the hooks, unless they have been.  For who knows
 * earlier than exit(). */
void vnxi_at_end_run(void);

#endif
