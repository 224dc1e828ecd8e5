#include "engine/native/shm/ptrace.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"

enum {
    SCOPE_UNKNOWN = -1,
    SCOPE_RELATIVES = 1,
    SCOPE_CAPABILITY = 2,
    SCOPE_NOBODY = 3,
};

/* -- The ptrace scope ----------------------------------------------------- */

/* Unknown: for lack of descriptors, for example. */
static int
find_scope(void)
{
    FILE *file = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
    char text[16] = "";

    if (file == NULL) {
        return errno == ENOENT ? 0 : SCOPE_UNKNOWN;
    }
    const char *line = fgets(text, sizeof text, file);
    fclose(file);
    return line == NULL ? SCOPE_UNKNOWN : (int)strtol(line, NULL, 10);
}

bool
vnxi_ptrace_may_allow(void)
{
    const char *value = getenv("VLLM_NIXL_ALLOW_PTRACE");
    return value == NULL || strcmp(value, "0") != 0;
}

static void
warn_not_allowed(int cause)
{
    static atomic_flag warned = ATOMIC_FLAG_INIT;

    if (!atomic_flag_test_and_set(&warned)) {
        vnxi_log(VNX_LOG_WARNING, NULL,
                 "peers on this host cannot access the memory of this "
                 "process: prctl(PR_SET_PTRACER): %s",
                 vnxi_errno(cause));
    }
}

void
vnxi_ptrace_allow(void)
{
    int scope = find_scope();

    if (scope != SCOPE_RELATIVES && scope != SCOPE_UNKNOWN) {
        return;
    }
    /* An unknown scope may be that of a kernel without Yama. */
    if (prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0) != 0 &&
        scope == SCOPE_RELATIVES) {
        warn_not_allowed(errno);
    }
}

/* -- Facts ---------------------------------------------------------------- */

typedef struct credentials {
    uint32_t uid[3], gid[3]; /* real, effective, saved */
    uint64_t permitted, effective;
} credentials_t;

/* Parse a line of proc(5), status; another line changes nothing. */
static void
take_line(const char *line, credentials_t *cred_p)
{
    uint32_t *uid = cred_p->uid, *gid = cred_p->gid;

    (void)(sscanf(line, "Uid: %" SCNu32 " %" SCNu32 " %" SCNu32, &uid[0],
                  &uid[1], &uid[2]) +
           sscanf(line, "Gid: %" SCNu32 " %" SCNu32 " %" SCNu32, &gid[0],
                  &gid[1], &gid[2]) +
           sscanf(line, "CapPrm: %" SCNx64, &cred_p->permitted) +
           sscanf(line, "CapEff: %" SCNx64, &cred_p->effective));
}

static bool
read_credentials(const char *path, credentials_t *cred_p)
{
    FILE *file = fopen(path, "re");
    char line[256];

    if (file == NULL) {
        return false;
    }
    *cred_p = (credentials_t){0};
    while (fgets(line, sizeof line, file) != NULL) {
        take_line(line, cred_p);
    }
    fclose(file);
    return true;
}

/* The id of the process that differs from ours, else any. */
static uint32_t
other_id(uint32_t ours, const uint32_t theirs[3])
{
    for (int i = 0; i < 3; i++) {
        if (theirs[i] != ours) {
            return theirs[i];
        }
    }
    return ours;
}

static void
compare_credentials(const credentials_t *ours, const credentials_t *theirs,
                    vnxi_ptrace_facts_t *facts)
{
    facts->uid[0] = ours->uid[0];
    facts->uid[1] = other_id(ours->uid[0], theirs->uid);
    facts->gid[0] = ours->gid[0];
    facts->gid[1] = other_id(ours->gid[0], theirs->gid);
    facts->extra_caps = theirs->permitted & ~ours->permitted;
}

/* The kernel lets a thread read this link if it passes the checks for reading
 * (PTRACE_MODE_READ): all but the ptrace scope, which is for
 * PTRACE_MODE_ATTACH alone. */
static bool
is_readable(pid_t pid)
{
    char path[64], link[64];

    snprintf(path, sizeof path, "/proc/%d/ns/pid", (int)pid);
    return readlink(path, link, sizeof link) >= 0 || errno != EACCES;
}

/* A process may always access itself, so only a filter of system calls can
 * prevent this. */
static bool
is_sandboxed(void)
{
    char from = 0, to;
    struct iovec local = {&to, 1}, remote = {&from, 1};

    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) < 0;
}

void
vnxi_ptrace_facts_find(pid_t pid, vnxi_ptrace_facts_t *facts_p)
{
    char path[64];
    credentials_t ours, theirs;

    *facts_p = (vnxi_ptrace_facts_t){
        .pid = pid,
        .sandboxed = is_sandboxed(),
        .readable = is_readable(pid),
        .scope = find_scope(),
    };
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    if (read_credentials("/proc/thread-self/status", &ours)) {
        facts_p->has_cap =
            (ours.effective & (UINT64_C(1) << CAP_SYS_PTRACE)) != 0;
        if (read_credentials(path, &theirs)) {
            compare_credentials(&ours, &theirs, facts_p);
        }
    }
}

/* -- The cause ------------------------------------------------------------ */

vnxi_ptrace_cause_t
vnxi_ptrace_cause(const vnxi_ptrace_facts_t *facts)
{
    bool has_cap = facts->has_cap;

    if (facts->sandboxed) {
        return VNXI_PTRACE_SANDBOX;
    }
    if (!has_cap &&
        (facts->uid[0] != facts->uid[1] || facts->gid[0] != facts->gid[1])) {
        return VNXI_PTRACE_USER;
    }
    if (!has_cap && facts->extra_caps != 0) {
        return VNXI_PTRACE_CAPABILITIES;
    }
    if (!has_cap && !facts->readable) {
        return VNXI_PTRACE_NOT_DUMPABLE;
    }
    if (!has_cap && facts->scope == SCOPE_RELATIVES) {
        return VNXI_PTRACE_NOT_ALLOWED;
    }
    if (!has_cap && facts->scope == SCOPE_CAPABILITY) {
        return VNXI_PTRACE_NO_CAP;
    }
    return facts->scope >= SCOPE_NOBODY ? VNXI_PTRACE_FORBIDDEN
                                        : VNXI_PTRACE_UNKNOWN;
}

static const char *const texts[] = {
    [VNXI_PTRACE_SANDBOX] =
        "a sandbox (seccomp) blocks process_vm_readv in this process. In "
        "containers add --cap-add=SYS_PTRACE, or a seccomp profile that "
        "allows the call",
    [VNXI_PTRACE_USER] = "run both as the same user and group",
    [VNXI_PTRACE_CAPABILITIES] =
        "it has capabilities that this process lacks. Give both the same "
        "capabilities, or give this process CAP_SYS_PTRACE (in containers "
        "--cap-add=SYS_PTRACE)",
    [VNXI_PTRACE_NOT_DUMPABLE] =
        "it is protected from other processes of its user (PR_SET_DUMPABLE "
        "is 0), at its own request or because it changed its user or its "
        "capabilities. Start it as its final user, or give this process "
        "CAP_SYS_PTRACE",
    [VNXI_PTRACE_NOT_ALLOWED] =
        "kernel.yama.ptrace_scope is 1, and that process does not allow it: "
        "VLLM_NIXL_ALLOW_PTRACE=0 is set there, or its program calls "
        "prctl(PR_SET_PTRACER). Remove that, run 'sysctl -w "
        "kernel.yama.ptrace_scope=0', or give both processes CAP_SYS_PTRACE",
    [VNXI_PTRACE_NO_CAP] =
        "kernel.yama.ptrace_scope is 2, and this process lacks "
        "CAP_SYS_PTRACE. Run 'sysctl -w kernel.yama.ptrace_scope=1' on the "
        "host, or give both processes the capability (in containers "
        "--cap-add=SYS_PTRACE, which helps only if they run as root)",
    [VNXI_PTRACE_FORBIDDEN] =
        "kernel.yama.ptrace_scope is 3, which denies it to everyone until "
        "the host is restarted. Set it to 1 in /etc/sysctl.d and restart",
    [VNXI_PTRACE_UNKNOWN] =
        "the usual cause is a security module (AppArmor, SELinux) or another "
        "user namespace. In containers try --cap-add=SYS_PTRACE",
};

void
vnxi_ptrace_explain(const vnxi_ptrace_facts_t *facts, char *text_p,
                    size_t size)
{
    vnxi_ptrace_cause_t cause = vnxi_ptrace_cause(facts);
    char users[128] = "";

    if (cause == VNXI_PTRACE_USER) {
        snprintf(users, sizeof users,
                 "it runs as user %" PRIu32 " and group %" PRIu32
                 ", this process as user %" PRIu32 " and group %" PRIu32 ": ",
                 facts->uid[1], facts->gid[1], facts->uid[0], facts->gid[0]);
    }
    snprintf(text_p, size,
             "the kernel denies access to the memory of process %d: %s%s",
             (int)facts->pid, users, texts[cause]);
}

vnx_status_t
vnxi_ptrace_error(pid_t pid, const char *operation, vnx_error_t *error)
{
    char text[VNX_ERROR_CAUSE_MAX];
    vnxi_ptrace_facts_t facts;

    vnxi_ptrace_facts_find(pid, &facts);
    vnxi_ptrace_explain(&facts, text, sizeof text);
    return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, operation, "%s", text);
}
