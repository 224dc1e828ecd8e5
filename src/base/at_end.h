/*
 * Hooks for the end of a process that has not closed its agents.  The process
 * frees memory before its threads end: an interpreter's objects, a library's
 * static variables.  The hooks stop threads that use such memory before that
 * happens.
 */
#ifndef VNXI_BASE_AT_END_H
#define VNXI_BASE_AT_END_H

/* Call `hook` once when the process exits, but not in a forked child.  At most
 * 8 hooks; idempotent.  The libraries that the hook uses must be loaded before
 * this call, so that their own exit handlers run after the hook. */
void vnxi_at_end_add(void (*hook)(void));

/* Call the hooks now, unless they were called already.  For callers that learn
 * about the end of the process earlier than exit(). */
void vnxi_at_end_run(void);

#endif
