/*
 * The kernel's permission to access another process (ptrace(2), "Ptrace access
 * mode checking"), which process_vm_readv(), process_vm_writev() and
 * pidfd_getfd() need.
 *
 * Under ptrace scope 1 of the kernel's module Yama, a process accesses only
 * its descendants, and processes that allow it by prctl(PR_SET_PTRACER).  So
 * the listener of a link allows it when an opener has proved its user and has
 * named the agent (hub_events.c).
 *
 * It allows all processes that pass the kernel's other checks
 * (PR_SET_PTRACER_ANY), and not just the peer, for two reasons.  A process has
 * one exception only: a second peer would take it from the first in the middle
 * of a transfer.  And the kernel does not tell which exception the program has
 * made itself, for a debugger or a crash handler: naming a peer would take the
 * permission from that one, whereas "any" includes it.  For the same reason it
 * is never taken back.
 */
#ifndef VNXI_NATIVE_SHM_PTRACE_H
#define VNXI_NATIVE_SHM_PTRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <vnx/vnx.h>

/* Return whether this process may allow access: not if VLLM_NIXL_ALLOW_PTRACE
 * is 0. */
bool vnxi_ptrace_may_allow(void);

/* Allow access to this process if the ptrace scope is 1 (or unknown): under 0
 * that is not needed, and under 2 and 3 it has no effect. */
void vnxi_ptrace_allow(void);

/* What decides whether the calling thread may access a process. */
typedef struct vnxi_ptrace_facts {
    pid_t pid;
    bool sandboxed;  /* the system call fails for every process */
    bool has_cap;    /* the thread has CAP_SYS_PTRACE */
    uint32_t uid[2]; /* of the thread; of the process: the real, effective or
                        saved one that differs from it, if any does */
    uint32_t gid[2];
    uint64_t extra_caps; /* of the process; the thread lacks them */
    bool readable;       /* by the checks other than the ptrace scope */
    int scope;           /* 0: none, or the kernel has no Yama; -1: unknown */
} vnxi_ptrace_facts_t;

/* Ask the kernel.  What it does not tell is assumed not to be the cause. */
void vnxi_ptrace_facts_find(pid_t pid, vnxi_ptrace_facts_t *facts_p);

/* Why access is denied, in the order in which an operator must remove the
 * causes. */
typedef enum vnxi_ptrace_cause {
    VNXI_PTRACE_SANDBOX,
    VNXI_PTRACE_USER,
    VNXI_PTRACE_CAPABILITIES,
    VNXI_PTRACE_NOT_DUMPABLE,
    VNXI_PTRACE_NOT_ALLOWED, /* scope 1 */
    VNXI_PTRACE_NO_CAP,      /* scope 2 */
    VNXI_PTRACE_FORBIDDEN,   /* scope 3 */
    VNXI_PTRACE_UNKNOWN,
} vnxi_ptrace_cause_t;

vnxi_ptrace_cause_t vnxi_ptrace_cause(const vnxi_ptrace_facts_t *facts);

/* Write the cause and its remedy; at most VNX_ERROR_CAUSE_MAX bytes. */
void vnxi_ptrace_explain(const vnxi_ptrace_facts_t *facts, char *text_p,
                         size_t size);

/* Report that the kernel has denied access to a process: VNX_ERR_NOT_ALLOWED
 * with the explanation. */
vnx_status_t vnxi_ptrace_error(pid_t pid, const char *operation,
                               vnx_error_t *error);

#endif
