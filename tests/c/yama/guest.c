/*
 * The first process of the virtual machine that scripts/yama_test.sh starts.
 * It runs one cell after the other, each with two agents in processes of their
 * own (side.h), prints a row for each, and switches the machine off.
 *
 * A cell is a ptrace scope, and the rights and the setting of both sides.  In
 * each direction the cell tells whether SHM must be used, and if not, which
 * words the reason must contain.
 */
#include "side.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPLY_WAIT_S 120
#define SCOPE_FILE "/proc/sys/kernel/yama/ptrace_scope"

static int rows_run, rows_failed;

/* -- Sides ---------------------------------------------------------------- */

typedef enum cap {
    CAP_DEFAULT, /* root: all capabilities; a user: none */
    CAP_PTRACE,  /* a user with CAP_SYS_PTRACE */
    CAP_OTHER,   /* a user with another capability, which does not help */
    CAP_LESS,    /* root without CAP_SYS_PTRACE */
} cap_t;

typedef struct setup {
    uid_t uid;
    cap_t cap;
    bool denies;      /* VLLM_NIXL_ALLOW_PTRACE=0 */
    bool undumpable;  /* PR_SET_DUMPABLE 0 */
    bool own_pids;    /* a pid namespace of its own */
    bool ucx_has_cma; /* UCX loads its module cma */
    bool no_ucx;      /* no libucp is found */
} setup_t;

typedef struct proc {
    pid_t pid;
    int fd;
    offer_t offer;
} proc_t;

static void
die(const char *what)
{
    fprintf(stderr, "guest: %s: %s\n", what, strerror(errno));
    _exit(1);
}

/* Keep this capability across setuid() and exec(). */
static void
hold_capability(int number)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {0};

    data[0].permitted = data[0].effective = data[0].inheritable =
        number < 0 ? 0 : 1u << number;
    if (syscall(SYS_capset, &header, data) != 0 ||
        (number >= 0 &&
         prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) != 0)) {
        die("capabilities");
    }
}

static void
take_rights(const setup_t *setup)
{
    if (setup->cap == CAP_LESS &&
        prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0) != 0) {
        die("PR_CAPBSET_DROP");
    }
    if (setup->uid == 0) {
        return;
    }
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0 || setgroups(0, NULL) != 0 ||
        setgid(setup->uid) != 0 || setuid(setup->uid) != 0) {
        die("setuid");
    }
    hold_capability(setup->cap == CAP_PTRACE  ? CAP_SYS_PTRACE
                    : setup->cap == CAP_OTHER ? CAP_NET_BIND_SERVICE
                                              : -1);
}

/* UCX allows ptrace itself when it finds its module cma. */
static void
set_environment(const setup_t *setup)
{
    clearenv();
    setenv("PATH", "/", 1);
    setenv("VLLM_NIXL_UCX_LIBRARY",
           setup->no_ucx ? "none" : "/ucx/libucp.so.0", 1);
    setenv("VLLM_NIXL_LOG_LEVEL", "ERROR", 1); /* the table has the causes */
    setenv("UCX_TLS", "tcp", 1);
    if (!setup->ucx_has_cma) {
        setenv("UCX_MODULES", "^cma", 1);
    }
    if (setup->denies) {
        setenv("VLLM_NIXL_ALLOW_PTRACE", "0", 1);
    }
}

/* The calling process gets a child that is the first one of a new pid
 * namespace, and ends with it. */
static void
enter_own_pids(void)
{
    int status;

    if (unshare(CLONE_NEWPID | CLONE_NEWNS) != 0) {
        die("unshare");
    }
    pid_t pid = fork();
    if (pid > 0) {
        syscall(SYS_close_range, SIDE_FD, ~0u,
                0); /* also the sockets of other sides */
        waitpid(pid, &status, 0);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("proc", "/proc", "proc", 0, NULL) != 0) {
        die("mount /proc");
    }
}

static _Noreturn void
become_side(const setup_t *setup, const char *name, int fd)
{
    const char *kind = setup->undumpable ? "undumpable" : "ordinary";

    if (dup2(fd, SIDE_FD) < 0) {
        die("dup2");
    }
    if (setup->own_pids) {
        enter_own_pids();
    }
    take_rights(setup);
    set_environment(setup);
    execl("/init", "/init", "side", name, kind, (char *)NULL);
    die("execl");
    abort();
}

static void
start_side(const setup_t *setup, const char *name, proc_t *side_p)
{
    struct timeval limit = {.tv_sec = REPLY_WAIT_S};
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        die("socketpair");
    }
    side_p->pid = fork();
    if (side_p->pid == 0) {
        become_side(setup, name, ends[1]);
    }
    close(ends[1]);
    side_p->fd = ends[0];
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    memset(&side_p->offer, 0, sizeof side_p->offer);
    if (recv(ends[0], &side_p->offer, sizeof side_p->offer, 0) !=
        (ssize_t)sizeof side_p->offer) {
        printf("side %s did not start\n", name);
    }
}

static void
stop_side(proc_t *side)
{
    int status = 0;

    close(side->fd);
    if (waitpid(side->pid, &status, 0) != side->pid || status != 0) {
        printf("side %s ended with status 0x%x\n", side->offer.name, status);
        rows_failed++;
    }
}

static report_t
give_order(const proc_t *side, order_kind_t kind, const proc_t *peer)
{
    order_t order = {.kind = kind, .peer = peer->offer};
    report_t report = {.done = false};

    if (send(side->fd, &order, sizeof order, MSG_NOSIGNAL) !=
            (ssize_t)sizeof order ||
        recv(side->fd, &report, sizeof report, 0) != (ssize_t)sizeof report) {
        report = (report_t){.done = false};
        snprintf(report.failure, sizeof report.failure, "no answer: %s",
                 strerror(errno));
    }
    return report;
}

/* -- Rows of the table ---------------------------------------------------- */

/* A row: whether all of it is as expected, and notes below it. */
typedef struct row {
    bool good;
    char cells[4][48];
    char notes[2400];
} row_t;

static void
note(row_t *row, const char *format, ...)
{
    size_t used = strlen(row->notes);
    va_list args;

    va_start(args, format);
    vsnprintf(row->notes + used, sizeof row->notes - used, format, args);
    va_end(args);
}

static void
expect(row_t *row, bool condition, const char *what, const char *detail)
{
    if (!condition) {
        row->good = false;
        note(row, "      WRONG: %s: %s\n", what, detail);
    }
}

/* The reasons so far, with N for the pid; rows give their numbers. */
static char reasons[32][SIDE_TEXT];
static int reason_count;

static int
number_reason(const char *text)
{
    static const char before[] = "the memory of process ";
    char plain[SIDE_TEXT];
    const char *at = strstr(text, before);
    int start = 0;

    if (at != NULL) {
        at += sizeof before - 1;
        start = (int)(at - text);
        at += strspn(at, "0123456789");
    }
    snprintf(plain, sizeof plain, "%.*s%s%s", start, text,
             at != NULL ? "N" : "", at != NULL ? at : text);
    for (int i = 0; i < reason_count; i++) {
        if (strcmp(reasons[i], plain) == 0) {
            return i + 1;
        }
    }
    if (reason_count < (int)(sizeof reasons / sizeof *reasons)) {
        memcpy(reasons[reason_count++], plain, sizeof plain);
    }
    return reason_count;
}

static void
print_reasons(void)
{
    for (int i = 0; i < reason_count; i++) {
        printf("[%d] %s\n", i + 1, reasons[i]);
    }
}

static void
print_row(long scope, const row_t *row)
{
    printf("%5ld  %-24s %-24s %-15s %-15s %s\n%s", scope, row->cells[0],
           row->cells[1], row->cells[2], row->cells[3],
           row->good ? "ok" : "FAILED", row->notes);
    fflush(stdout);
    rows_run++;
    rows_failed += !row->good;
}

static void
print_head(void)
{
    printf("scope  %-24s %-24s %-15s %-15s\n", "one", "two", "one>two",
           "two>one");
}

/* "SHM, right"; "UCX [2], right": the second reason */
static void
write_result(char *text_p, size_t size, const report_t *report)
{
    char number[16] = "";

    if (report->reason[0] != '\0') {
        snprintf(number, sizeof number, " [%d]",
                 number_reason(report->reason));
    }
    snprintf(text_p, size, "%s%s%s", report->path, number,
             report->done ? ", right" : ", FAILED");
}

/* Check the report of a direction.  `reason` NULL: SHM must be used. */
static void
expect_report(row_t *row, int direction, const report_t *report,
              const char *reason)
{
    write_result(row->cells[2 + direction], sizeof row->cells[0], report);
    expect(row, report->done, "bytes", report->failure);
    if (reason == NULL) {
        expect(row, strcmp(report->path, "SHM") == 0, "SHM is not used",
               report->reason);
        expect(row, report->unmapped[0] == '\0', "not mapped",
               report->unmapped);
    } else {
        expect(row, strcmp(report->path, "UCX") == 0, "path", report->path);
        expect(row, strstr(report->reason, reason) != NULL, reason,
               report->reason);
    }
}

/* `from` loads `to`, reads and writes; `to` checks what was written. */
static void
run_direction(row_t *row, int direction, const proc_t *from, const proc_t *to,
              const char *reason)
{
    report_t moved = give_order(from, ORDER_LOAD, to);
    report_t written = give_order(to, ORDER_CHECK, from);

    expect_report(row, direction, &moved, reason);
    expect(row, written.done, "bytes", written.failure);
}

static void
expect_order(row_t *row, const proc_t *side, order_kind_t kind,
             const proc_t *peer, const char *what)
{
    report_t report = give_order(side, kind, peer);
    expect(row, report.done, what, report.failure);
}

static void
describe_setup(const setup_t *setup, char *text_p, size_t size)
{
    static const char *const caps[] = {"", " +cap", " +other cap", " -cap"};
    char user[24] = "root";

    if (setup->uid != 0) {
        snprintf(user, sizeof user, "user %u", (unsigned)setup->uid);
    }
    snprintf(text_p, size, "%s%s%s%s%s%s%s", user, caps[setup->cap],
             setup->denies ? " ALLOW=0" : "",
             setup->undumpable ? " undumpable" : "",
             setup->own_pids ? " pid ns" : "",
             setup->ucx_has_cma ? " cma" : "", setup->no_ucx ? " no UCX" : "");
}

/* -- Cells ---------------------------------------------------------------- */

typedef struct cell {
    setup_t one, two;
    const char *reason[2]; /* one>two, two>one */
} cell_t;

static void
run_cell(long scope, const cell_t *cell)
{
    row_t row = {.good = true};
    proc_t one, two;

    start_side(&cell->one, "one", &one);
    start_side(&cell->two, "two", &two);
    describe_setup(&cell->one, row.cells[0], sizeof row.cells[0]);
    describe_setup(&cell->two, row.cells[1], sizeof row.cells[1]);
    run_direction(&row, 0, &one, &two, cell->reason[0]);
    run_direction(&row, 1, &two, &one, cell->reason[1]);
    print_row(scope, &row);
    stop_side(&one);
    stop_side(&two);
}

#define ALONE 1000 /* a user */
#define NOT_ALLOWED "VLLM_NIXL_ALLOW_PTRACE=0 is set there"
#define NO_CAP "ptrace_scope is 2, and this process lacks CAP_SYS_PTRACE"
#define FORBIDDEN "ptrace_scope is 3, which denies it to everyone"

/* By scope: what is expected of two equal sides, with and without
 * CAP_SYS_PTRACE; without it, also with VLLM_NIXL_ALLOW_PTRACE=0. */
static const struct {
    const char *cap, *none, *denies;
} equal[] = {
    {NULL, NULL, NULL},
    {NULL, NULL, NOT_ALLOWED},
    {NULL, NO_CAP, NO_CAP},
    {FORBIDDEN, FORBIDDEN, FORBIDDEN},
};

/* Users and root, with and without the capability, setting on and off. */
static void
run_equal_sides(long scope)
{
    for (int i = 0; i < 8; i++) {
        bool root = (i & 1) != 0, has_cap = (i & 2) != 0;
        setup_t setup = {
            .uid = root ? 0 : ALONE,
            .cap = root == has_cap ? CAP_DEFAULT
                   : has_cap       ? CAP_PTRACE
                                   : CAP_LESS,
            .denies = (i & 4) != 0,
        };
        const char *reason = has_cap        ? equal[scope].cap
                             : setup.denies ? equal[scope].denies
                                            : equal[scope].none;
        cell_t cell = {setup, setup, {reason, reason}};
        run_cell(scope, &cell);
    }
}

/* Sides that differ.  Scopes 0 and 1 give the same results but for the first
 * rows. */
static const cell_t differing[] = {
    {{.uid = ALONE},
     {.uid = ALONE, .undumpable = true},
     {"PR_SET_DUMPABLE is 0", NULL}},
    {{.uid = ALONE},
     {.uid = ALONE, .cap = CAP_OTHER},
     {"it has capabilities that this process lacks", NULL}},
    {{.uid = ALONE},
     {.uid = ALONE + 1},
     {"the peer runs as user 1001 and this process as user 1000",
      "the peer runs as user 1000 and this process as user 1001"}},
    {{.uid = 0},
     {.uid = ALONE},
     {NULL, "the peer runs as user 0 and this process as user 1000"}},
    {{.uid = 0, .cap = CAP_LESS},
     {.uid = ALONE},
     {"it runs as user 1000 and group 1000, this process as user 0",
      "the peer runs as user 0 and this process as user 1000"}},
    {{.uid = 0},
     {.uid = 0, .own_pids = true},
     {"another pid namespace", "another pid namespace"}},
};

static const cell_t differing_settings[] = {
    {{.uid = ALONE}, {.uid = ALONE, .denies = true}, {NOT_ALLOWED, NULL}},
    {{.uid = 0, .cap = CAP_LESS},
     {.uid = 0, .cap = CAP_LESS, .denies = true},
     {NOT_ALLOWED, NULL}},
    {{.uid = ALONE, .no_ucx = true},
     {.uid = ALONE, .no_ucx = true},
     {NULL, NULL}},
    /* UCX allows it whatever the setting is. */
    {{.uid = ALONE, .denies = true, .ucx_has_cma = true},
     {.uid = ALONE, .denies = true, .ucx_has_cma = true},
     {NULL, NULL}},
};

/* -- Scenes under scope 1 ------------------------------------------------- */

static const setup_t user = {.uid = ALONE};

static void
name_scene(row_t *row, const char *name)
{
    snprintf(row->cells[0], sizeof row->cells[0], "%s", name);
}

/* A second opener takes nothing from the first. */
static void
run_two_openers(void)
{
    row_t row = {.good = true};
    proc_t one, two, target;

    name_scene(&row, "two openers");
    start_side(&user, "one", &one);
    start_side(&user, "two", &two);
    start_side(&user, "target", &target);
    run_direction(&row, 0, &one, &target, NULL);
    run_direction(&row, 1, &two, &target, NULL);
    expect_order(&row, &one, ORDER_MOVE, &target, "the first opener");
    expect_order(&row, &target, ORDER_CHECK, &one, "its bytes");
    print_row(1, &row);
    stop_side(&one);
    stop_side(&two);
    stop_side(&target);
}

/* The program has named a tracer: that one still traces it after a link. */
static void
run_exception_of_the_program(void)
{
    row_t row = {.good = true};
    proc_t one, tracer, target;

    name_scene(&row, "program names a tracer");
    start_side(&user, "one", &one);
    start_side(&user, "tracer", &tracer);
    start_side(&user, "target", &target);
    report_t early = give_order(&tracer, ORDER_PEEK, &target);
    expect(&row, !early.done, "the tracer", "may read before it is named");
    expect_order(&row, &target, ORDER_NAME, &tracer, "prctl");
    expect_order(&row, &tracer, ORDER_PEEK, &target, "the tracer");
    run_direction(&row, 0, &one, &target, NULL);
    expect_order(&row, &tracer, ORDER_PEEK, &target, "the tracer, linked");
    print_row(1, &row);
    stop_side(&one);
    stop_side(&tracer);
    stop_side(&target);
}

/* The program takes the permission back: transfers fail and say why, and
 * loading the peer again gives it again. */
static void
run_withdrawal(void)
{
    row_t row = {.good = true};
    proc_t one, two;

    name_scene(&row, "program withdraws it");
    start_side(&user, "one", &one);
    start_side(&user, "two", &two);
    run_direction(&row, 0, &one, &two, NULL);
    expect_order(&row, &two, ORDER_WITHDRAW, &one, "prctl");
    report_t report = give_order(&one, ORDER_MOVE, &two);
    expect(&row, !report.done, "a transfer", "succeeds after the withdrawal");
    expect(&row, strstr(report.failure, "prctl(PR_SET_PTRACER)") != NULL,
           "the error", report.failure);
    note(&row, "      transfer: %s\n", report.failure);
    run_direction(&row, 0, &one, &two, NULL);
    print_row(1, &row);
    stop_side(&one);
    stop_side(&two);
}

/* No other path leads to the peer: the error gives the cause. */
static void
run_denial_without_ucx(void)
{
    static const setup_t opener = {.uid = ALONE, .no_ucx = true};
    static const setup_t denier = {
        .uid = ALONE, .no_ucx = true, .denies = true};
    row_t row = {.good = true};
    proc_t one, two;

    start_side(&opener, "one", &one);
    start_side(&denier, "two", &two);
    describe_setup(&opener, row.cells[0], sizeof row.cells[0]);
    describe_setup(&denier, row.cells[1], sizeof row.cells[1]);
    report_t report = give_order(&one, ORDER_KNOW, &two);
    snprintf(row.cells[2], sizeof row.cells[2], "%s",
             report.done ? report.path : "an error");
    expect(&row, !report.done, "loading", "succeeds");
    expect(&row, strstr(report.failure, NOT_ALLOWED) != NULL, "the error",
           report.failure);
    note(&row, "      load: %s\n", report.failure);
    run_direction(&row, 1, &two, &one, NULL);
    print_row(1, &row);
    stop_side(&one);
    stop_side(&two);
}

/* A stopped process cannot allow anything. */
static void
run_stopped(void)
{
    row_t row = {.good = true};
    proc_t one, two;

    name_scene(&row, "a stopped peer");
    start_side(&user, "one", &one);
    start_side(&user, "two", &two);
    kill(two.pid, SIGSTOP);
    report_t report = give_order(&one, ORDER_KNOW, &two);
    kill(two.pid, SIGCONT);
    expect_report(&row, 0, &report, "did not answer within 5 s");
    run_direction(&row, 1, &one, &two, NULL);
    print_row(1, &row); /* the second result: after it continues */
    stop_side(&one);
    stop_side(&two);
}

/* The metadata of one agent with the name of another: the peer refuses. */
static void
run_false_name(void)
{
    row_t row = {.good = true};
    proc_t one, two;

    name_scene(&row, "a false name");
    start_side(&user, "one", &one);
    start_side(&user, "two", &two);
    proc_t liar = two;
    char *name = memmem(liar.offer.metadata, 64, "two", 3);
    if (name == NULL) {
        die("the name in the metadata");
    }
    memcpy(name, "too", 3);
    memcpy(liar.offer.name, "too", 3);
    report_t report = give_order(&one, ORDER_KNOW, &liar);
    expect(&row, !report.done, "a false name", "is accepted");
    expect(&row, strstr(report.failure, "its socket is 'two'") != NULL,
           "the error", report.failure);
    note(&row, "      load: %s\n", report.failure);
    run_direction(&row, 0, &one, &two, NULL);
    print_row(1, &row);
    stop_side(&one);
    stop_side(&two);
}

/* -- The machine ---------------------------------------------------------- */

static void
mount_all(void)
{
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/tmp", 01777);
    if (mount("proc", "/proc", "proc", 0, NULL) != 0 ||
        mount("sysfs", "/sys", "sysfs", 0, NULL) != 0 ||
        mount("securityfs", "/sys/kernel/security", "securityfs", 0, NULL) !=
            0 ||
        mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) != 0) {
        die("mount");
    }
}

static void
start_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0) {
        die("loopback");
    }
    close(fd);
}

/* Without Yama every row of scope 0 would pass, so this must not. */
static void
check_yama(void)
{
    char modules[256] = "";
    FILE *file = fopen("/sys/kernel/security/lsm", "re");

    if (file == NULL || fgets(modules, sizeof modules, file) == NULL ||
        strstr(modules, "yama") == NULL) {
        printf("this kernel has no Yama: security modules '%s'\n", modules);
        rows_failed++;
    }
    printf("security modules: %s\n", modules);
    if (file != NULL) {
        fclose(file);
    }
}

static void
set_scope(long scope)
{
    FILE *file = fopen(SCOPE_FILE, "r+e");
    long is = -1;

    if (file != NULL) {
        fprintf(file, "%ld\n", scope);
        fclose(file);
        file = fopen(SCOPE_FILE, "re");
    }
    if (file == NULL || fscanf(file, "%ld", &is) != 1 || is != scope) {
        printf("the ptrace scope cannot be set to %ld\n", scope);
        rows_failed++;
    }
    if (file != NULL) {
        fclose(file);
    }
}

static void
run_cells(const cell_t *cells, size_t count, long scope)
{
    for (size_t i = 0; i < count; i++) {
        run_cell(scope, &cells[i]);
    }
}

static void
run_scopes(long first, long last)
{
    size_t count = sizeof differing / sizeof *differing;

    print_head();
    for (long scope = first; scope <= last; scope++) { /* 3 is final */
        set_scope(scope);
        run_equal_sides(scope);
        if (scope <= 1) {
            run_cells(differing, count, scope);
        }
        if (scope == 1) {
            run_cells(differing_settings,
                      sizeof differing_settings / sizeof *differing_settings,
                      scope);
            run_two_openers();
            run_exception_of_the_program();
            run_withdrawal();
            run_denial_without_ucx();
            run_stopped();
            run_false_name();
        }
    }
    print_reasons();
}

int
main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "side") == 0) {
        if (strcmp(argv[3], "undumpable") == 0) {
            prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
        }
        return side_main(argv[2]);
    }
    if (getpid() != 1) {
        fprintf(stderr, "run scripts/yama_test.sh\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    mount_all();
    start_loopback();
    check_yama();
    if (argc == 2) { /* one scope only */
        run_scopes(argv[1][0] - '0', argv[1][0] - '0');
    } else {
        run_scopes(0, 3);
    }
    printf("yama test: %d rows, %d failed\n", rows_run, rows_failed);
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
