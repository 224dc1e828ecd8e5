/*
 * Design notes.  As in import.c: all windows of the process are in one list,
 * under one lock, which is not held while the driver or the host is called.
 * Other threads set the state of a window or of a half and wake the thread of
 * its gpu; that thread alone maps, copies and frees.
 *
 * The memory is the owner's.  It must not be able to shrink, otherwise a lying
 * owner could end this process with SIGBUS.
 *
 * A half that was abandoned stays in use until the owner has answered or the
 * window ends, because the owner may still write to it.
 */
#include "engine/native/cuda/window.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "base/json.h"
#include "base/mutex.h"

#define OPERATION "vnx_xfer_post"
#define WHY_MAX 192u

typedef enum half_state {
    HALF_FREE, /* or being filled */
    HALF_SENT,
    HALF_BACK,
} half_state_t;

typedef enum window_state {
    STATE_ASKING, /* until the owner's answer */
    STATE_OPENED, /* to be mapped */
    STATE_OPEN,
    STATE_FAILED, /* `error` */
} window_state_t;

typedef struct vnxi_cuda_window {
    /* Set at the beginning. */
    vnxi_cuda_gpu_t *gpu;
    const vnxi_port_t *port;
    uintptr_t conn_id;
    uint64_t number;
    char why[WHY_MAX]; /* the owner has to copy */
    /* windows_lock, also the state of halves and their answers */
    struct vnxi_cuda_window *next;
    window_state_t state;
    bool is_refused;   /* STATE_FAILED: by the owner */
    bool is_ending;    /* as soon as the owner has stopped writing */
    bool must_end;     /* at once */
    bool is_silent;    /* because the owner has not answered in time */
    int fd;            /* owned: STATE_OPENED */
    vnx_error_t error; /* of STATE_FAILED */
    uint64_t failed;   /* vnxi_cuda_next_number() of then */
    /* The gpu's thread. */
    unsigned char *base; /* NULL: not mapped */
    bool is_pinned;
    vnxi_cuda_half_t halves[VNXI_WINDOW_HALVES];
} window_t;

static vnxi_mutex_t windows_lock = VNXI_MUTEX_INIT(VNXI_RANK_CUDA_WINDOWS);
static window_t *windows; /* windows_lock */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnxi_cond_t ended; /* a window; initialised by start() */

static void
forget_in_child(void)
{
    vnxi_mutex_init(&windows_lock, VNXI_RANK_CUDA_WINDOWS);
    vnxi_cond_init(&ended);
    windows = NULL;
}

static void
start(void)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_cond_init(&ended);
}

static bool
is_of_conn(const window_t *window, const vnxi_port_t *port, uintptr_t conn_id)
{
    return window->port == port && window->conn_id == conn_id;
}

/* -- Opening ---------------------------------------------------------------
 */

static window_t *
find_lock_held(const vnxi_cuda_key_t *key, const vnxi_cuda_gpu_t *gpu)
{
    window_t *window = windows;

    while (window != NULL && (window->gpu != gpu || window->is_ending ||
                              !is_of_conn(window, key->port, key->conn_id))) {
        window = window->next;
    }
    return window;
}

static vnx_status_t
open_window(const vnxi_cuda_key_t *key, vnxi_cuda_gpu_t *gpu, const char *why,
            vnx_error_t *error)
{
    const vnxi_port_host_t *host = &key->port->config.host;
    window_t *window = calloc(1, sizeof *window);

    if (window == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *window);
    }
    window->gpu = gpu;
    window->port = key->port;
    window->conn_id = key->conn_id;
    window->number = vnxi_cuda_next_number();
    window->fd = -1;
    snprintf(window->why, sizeof window->why, "%s", why);
    host->retain(host->context);
    pthread_once(&once, start);
    vnxi_mutex_lock(&windows_lock);
    window->next = windows;
    windows = window;
    vnxi_mutex_unlock(&windows_lock);
    vnx_status_t status = vnxi_cuda_ask_owner(
        key->port, key->conn_id,
        &(vnxi_lend_t){.type = VNXI_LEND_OPEN, .loan = window->number}, error);
    if (status == VNX_OK) {
        return VNX_IN_PROG;
    }
    vnxi_mutex_lock(&windows_lock);
    window->is_ending = true;
    gpu->wake_for_windows(gpu);
    vnxi_mutex_unlock(&windows_lock);
    return status;
}

static vnx_status_t
check_fd(int fd, vnx_error_t *error)
{
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;

    return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && fstat(fd, &st) == 0 &&
                   st.st_size == VNXI_WINDOW_BYTES
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                                "the peer has not sent a window of %u bytes "
                                "that cannot shrink",
                                VNXI_WINDOW_BYTES);
}

/* The descriptor is closed in any case. */
static vnx_status_t
map_window(window_t *window, vnx_error_t *error)
{
    vnx_status_t status = check_fd(window->fd, error);
    void *base = MAP_FAILED;
    uint64_t delta = 0;

    if (status == VNX_OK) {
        base = mmap(NULL, VNXI_WINDOW_BYTES, PROT_READ | PROT_WRITE,
                    MAP_SHARED, window->fd, 0);
        if (base == MAP_FAILED) {
            status = vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                                    "cannot map a window of %u bytes: %s",
                                    VNXI_WINDOW_BYTES, vnxi_errno(errno));
        }
    }
    vnxi_fork_fd_close(window->fd);
    window->fd = -1;
    if (status != VNX_OK) {
        return status;
    }
    madvise(base, VNXI_WINDOW_BYTES, MADV_DONTFORK); /* pinned memory */
    window->base = base;
    window->is_pinned =
        window->gpu->library != NULL &&
        vnxi_cuda_gpu_pin(window->gpu, base, VNXI_WINDOW_BYTES, &delta);
    for (unsigned i = 0; i < VNXI_WINDOW_HALVES; i++) {
        vnxi_cuda_half_t *half = &window->halves[i];
        half->window = window;
        half->bytes = window->base + VNXI_WINDOW_HEAD_BYTES +
                      (size_t)i * VNXI_WINDOW_HALF_BYTES;
        half->is_pinned = window->is_pinned;
        half->delta = delta;
    }
    return VNX_OK;
}

static void
finish_opening(window_t *window)
{
    vnx_error_t error;

    vnx_status_t status = map_window(window, &error);
    vnxi_mutex_lock(&windows_lock);
    window->state = status == VNX_OK ? STATE_OPEN : STATE_FAILED;
    if (status != VNX_OK) {
        window->error = error;
        window->failed = vnxi_cuda_next_number();
    }
    vnxi_mutex_unlock(&windows_lock);
}

/* -- Halves ----------------------------------------------------------------
 */

vnx_status_t
vnxi_cuda_half_get(const vnxi_cuda_key_t *key, vnxi_cuda_gpu_t *gpu,
                   uint64_t since, const char *why, vnxi_cuda_half_t **half_p,
                   vnx_error_t *error)
{
    const vnxi_port_config_t *config = &key->port->config;
    vnx_status_t status = VNX_IN_PROG;

    vnxi_mutex_lock(&windows_lock);
    window_t *window = find_lock_held(key, gpu);
    bool is_refused = false;
    if (window != NULL && window->state == STATE_FAILED) {
        window->is_ending = true; /* the next transfer asks again */
        gpu->wake_for_windows(gpu);
        if (window->failed > since) {
            is_refused = window->is_refused;
            *error = window->error;
            status = error->status;
        }
    }
    for (unsigned i = 0; window != NULL && window->state == STATE_OPEN &&
                         status == VNX_IN_PROG && i < VNXI_WINDOW_HALVES;
         i++) {
        if (window->halves[i].state == HALF_FREE) {
            *half_p = &window->halves[i];
            status = VNX_OK;
        }
    }
    vnxi_mutex_unlock(&windows_lock);
    if (is_refused) {
        config->host.give_up(config->host.context, config->number,
                             key->conn_id, error->cause);
    }
    return window == NULL ? open_window(key, gpu, why, error) : status;
}

static vnxi_window_head_t *
head_of(const window_t *window)
{
    return (vnxi_window_head_t *)window->base;
}

static unsigned
index_of(const vnxi_cuda_half_t *half)
{
    return (unsigned)(half - half->window->halves);
}

/* Send the rows from `first` on that are of one region; returns how many. */
static uint32_t
send_some(const vnxi_cuda_half_t *half, uint32_t first, vnx_status_t *status_p,
          vnx_error_t *error)
{
    const vnxi_cuda_key_t *key = half->rows[first].key;
    vnxi_lend_row_t rows[VNXI_LEND_ROWS_MAX];
    uint32_t count = 0;

    while (first + count < half->count &&
           half->rows[first + count].key == key) {
        const vnxi_cuda_window_row_t *row = &half->rows[first + count];
        rows[count++] = (vnxi_lend_row_t){row->remote, row->offset, row->len};
    }
    *status_p = vnxi_cuda_ask_owner(
        half->window->port, half->window->conn_id,
        &(vnxi_lend_t){.type = VNXI_LEND_MOVE,
                       .loan = half->token,
                       .window = half->window->number,
                       .half = (uint8_t)index_of(half),
                       .is_write = half->op == VNX_OP_WRITE,
                       .addr = key->addr,
                       .len = key->len,
                       .dev = key->dev,
                       .count = count,
                       .moved = rows},
        error);
    return count;
}

static unsigned
count_messages(const vnxi_cuda_half_t *half)
{
    unsigned count = 0;

    for (uint32_t i = 0; i < half->count; i++) {
        count += i == 0 || half->rows[i].key != half->rows[i - 1].key;
    }
    return count;
}

/* The owner has answered all messages about the half. */
static void
set_back_lock_held(vnxi_cuda_half_t *half)
{
    half->state = HALF_BACK;
    half->window->gpu->wake_for_windows(half->window->gpu);
}

void
vnxi_cuda_half_free(vnxi_cuda_half_t *half)
{
    vnxi_mutex_lock(&windows_lock);
    half->state = HALF_FREE;
    half->user = NULL;
    vnxi_mutex_unlock(&windows_lock);
}

vnx_status_t
vnxi_cuda_half_send(vnxi_cuda_half_t *half, vnx_op_t op, void *user,
                    vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    unsigned sent = 0;

    vnxi_mutex_lock(&windows_lock);
    half->op = op;
    half->user = user;
    half->status = VNX_OK;
    half->token = vnxi_cuda_next_number();
    half->messages = count_messages(half);
    half->state = HALF_SENT;
    vnxi_mutex_unlock(&windows_lock);
    atomic_store(&head_of(half->window)->tokens[index_of(half)], half->token);
    for (uint32_t i = 0; status == VNX_OK && i < half->count;) {
        i += send_some(half, i, &status, error);
        sent += status == VNX_OK;
    }
    if (status == VNX_OK) {
        return VNX_OK;
    }
    /* If some of it was sent, it comes back, with this error. */
    atomic_store(&head_of(half->window)->tokens[index_of(half)], 0);
    unsigned unsent = count_messages(half) - sent;
    vnxi_mutex_lock(&windows_lock);
    half->messages = half->messages > unsent ? half->messages - unsent : 0;
    half->status = status;
    half->error = *error;
    if (sent == 0) {
        half->state = HALF_FREE;
        half->user = NULL;
    } else if (half->messages == 0 && half->state == HALF_SENT) {
        set_back_lock_held(half);
    }
    vnxi_mutex_unlock(&windows_lock);
    return sent == 0 ? status : VNX_OK;
}

unsigned
vnxi_cuda_halves_abandon(const vnxi_cuda_gpu_t *gpu, const void *user,
                         bool waits)
{
    unsigned count = 0;

    vnxi_mutex_lock(&windows_lock);
    for (window_t *window = windows; window != NULL; window = window->next) {
        for (unsigned i = 0; window->gpu == gpu && i < VNXI_WINDOW_HALVES;
             i++) {
            vnxi_cuda_half_t *half = &window->halves[i];
            if (half->user != user) {
                continue;
            }
            atomic_store(&head_of(window)->tokens[i], 0);
            if (!waits || half->op == VNX_OP_READ) {
                half->user = NULL;
                count++;
            }
            if (!waits) { /* its answer may never come */
                window->is_ending = window->must_end = true;
                window->is_silent = true;
                window->gpu->wake_for_windows(window->gpu);
            }
        }
    }
    vnxi_mutex_unlock(&windows_lock);
    return count;
}

/* -- The list --------------------------------------------------------------
 */

static void
take_out_lock_held(window_t *window)
{
    window_t **at = &windows;

    while (*at != window) {
        at = &(*at)->next;
    }
    *at = window->next;
}

static void
end(window_t *window)
{
    const vnxi_port_host_t *host = &window->port->config.host;

    if (window->is_pinned) {
        vnxi_cuda_gpu_unpin(window->gpu, window->base);
    }
    if (window->base != NULL) {
        munmap(window->base, VNXI_WINDOW_BYTES);
    }
    vnxi_fork_fd_close(window->fd);
    vnxi_cuda_ask_owner(
        window->port, window->conn_id,
        &(vnxi_lend_t){.type = VNXI_LEND_RETURNED, .loan = window->number},
        NULL);
    host->release(host->context); /* first, as in import.c */
    vnxi_mutex_lock(&windows_lock);
    take_out_lock_held(window);
    vnxi_cond_broadcast(&ended);
    vnxi_mutex_unlock(&windows_lock);
    free(window);
}

/* A window ends.  Call off what the owner has not begun.  Returns whether it
 * may still write to its memory; if the window must end at once, the halves do
 * not come back from it. */
static bool
call_off_lock_held(window_t *window)
{
    bool waits = false;

    for (unsigned i = 0; i < VNXI_WINDOW_HALVES; i++) {
        vnxi_cuda_half_t *half = &window->halves[i];
        if (half->state != HALF_SENT) {
            continue;
        }
        atomic_store(&head_of(window)->tokens[i], 0);
        if (half->op == VNX_OP_WRITE && !window->must_end) {
            waits = true;
        } else {
            half->state = HALF_BACK;
            half->status = vnxi_error_set(
                &half->error, VNX_ERR_BACKEND, OPERATION,
                window->is_silent
                    ? "the peer has not answered a question about its GPU "
                      "memory in time, so the window to it was closed"
                    : "the window to the peer's GPU memory was closed");
        }
    }
    return waits;
}

static vnxi_cuda_half_t *
find_back_lock_held(window_t *window)
{
    for (unsigned i = 0; i < VNXI_WINDOW_HALVES; i++) {
        if (window->halves[i].state == HALF_BACK) {
            return &window->halves[i];
        }
    }
    return NULL;
}

/* What there is to do for the gpu's thread. */
typedef struct task {
    window_t *window;       /* NULL: nothing */
    vnxi_cuda_half_t *half; /* that has come back */
    bool ends;
} task_t;

static task_t
next_task(const vnxi_cuda_gpu_t *gpu, bool ends_all)
{
    task_t task = {0};

    vnxi_mutex_lock(&windows_lock);
    for (window_t *window = windows; window != NULL && task.window == NULL;
         window = window->next) {
        if (window->gpu != gpu) {
            continue;
        }
        window->must_end = window->must_end || ends_all;
        window->is_ending = window->is_ending || ends_all;
        bool ends = window->is_ending && !call_off_lock_held(window);
        task.half = find_back_lock_held(window);
        task.ends = ends && task.half == NULL;
        if (task.half != NULL || ends || window->state == STATE_OPENED) {
            task.window = window;
        }
    }
    vnxi_mutex_unlock(&windows_lock);
    return task;
}

static void
serve(const vnxi_cuda_gpu_t *gpu, bool ends_all,
      void (*back)(void *user, vnxi_cuda_half_t *half))
{
    task_t task;

    while ((task = next_task(gpu, ends_all)).window != NULL) {
        if (task.ends) {
            end(task.window);
        } else if (task.half == NULL) {
            finish_opening(task.window);
        } else {
            if (task.half->user != NULL && back != NULL) {
                back(task.half->user, task.half);
            }
            vnxi_cuda_half_free(task.half);
        }
    }
}

void
vnxi_cuda_windows_serve(vnxi_cuda_gpu_t *gpu,
                        void (*back)(void *user, vnxi_cuda_half_t *half))
{
    serve(gpu, false, back);
}

void
vnxi_cuda_windows_end(vnxi_cuda_gpu_t *gpu)
{
    serve(gpu, true, NULL);
}

void
vnxi_cuda_windows_drop(const vnxi_port_t *port, uintptr_t conn_id,
                       bool is_gone)
{
    vnxi_mutex_lock(&windows_lock);
    for (window_t *window = windows; window != NULL; window = window->next) {
        if (is_of_conn(window, port, conn_id)) {
            window->is_ending = true;
            window->must_end = window->must_end || is_gone;
            window->gpu->wake_for_windows(window->gpu);
        }
    }
    vnxi_mutex_unlock(&windows_lock);
}

static bool
has_window_lock_held(const vnxi_port_t *port, uintptr_t conn_id)
{
    const window_t *window = windows;

    while (window != NULL && !is_of_conn(window, port, conn_id)) {
        window = window->next;
    }
    return window != NULL;
}

void
vnxi_cuda_windows_settle(const vnxi_port_t *port, uintptr_t conn_id,
                         uint64_t deadline)
{
    struct timespec until = vnxi_clock_timespec(deadline);
    int late = 0;

    vnxi_mutex_lock(&windows_lock);
    while (late == 0 && has_window_lock_held(port, conn_id)) {
        late = vnxi_cond_timedwait(&ended, &windows_lock, &until);
    }
    vnxi_mutex_unlock(&windows_lock);
    if (late != 0) {
        vnxi_cuda_windows_drop(port, conn_id, true);
    }
}

void
vnxi_cuda_windows_describe(const vnxi_port_t *port, uintptr_t conn_id,
                           vnxi_writer_t *out)
{
    char why[WHY_MAX] = "";
    size_t count = 0;

    vnxi_mutex_lock(&windows_lock);
    for (const window_t *window = windows; window != NULL;
         window = window->next) {
        if (window->state == STATE_OPEN && is_of_conn(window, port, conn_id)) {
            memcpy(why, window->why, sizeof why);
            count++;
        }
    }
    vnxi_mutex_unlock(&windows_lock);
    if (count > 0) {
        vnxi_json_number(out, "cuda_windows", count);
        vnxi_json_member(out, "cuda_windows_because", why);
    }
}

/* -- Messages from owners --------------------------------------------------
 */

static void
set_error(vnx_error_t *error, vnx_status_t status, const char *what,
          const vnxi_lend_t *message)
{
    vnxi_error_set(error, status, OPERATION, "%s", what);
    for (size_t i = 0; i < message->count; i++) {
        vnxi_error_add(error, "%c",
                       vnxi_error_printable((unsigned char)message->cause[i]));
    }
}

/* Returns whether the descriptor was taken over. */
static bool
on_opened_lock_held(window_t *window, const vnxi_lend_t *message,
                    const vnxi_control_t *control)
{
    bool takes = message->status == 0 && control->fd_count == 1;

    if (takes) {
        window->fd = control->fds[0];
        window->state = STATE_OPENED;
    } else {
        window->state = STATE_FAILED;
        window->failed = vnxi_cuda_next_number();
        window->is_refused = message->status == -VNX_ERR_BACKEND ||
                             message->status == -VNX_ERR_NOT_SUPPORTED;
        set_error(&window->error, VNX_ERR_BACKEND,
                  message->status != 0
                      ? "the peer does not copy its GPU memory: "
                  : control->has_lost_fds
                      ? "this process cannot take a descriptor of the peer: "
                        "the limit is reached"
                      : "the peer has not sent a window",
                  message);
    }
    window->gpu->wake_for_windows(window->gpu);
    return takes;
}

static void
on_moved_lock_held(vnxi_cuda_half_t *half, const vnxi_lend_t *message)
{
    if (message->status != 0 && half->status == VNX_OK) {
        half->status = vnxi_cuda_refused_status(message);
        set_error(&half->error, half->status,
                  "the peer cannot copy its GPU memory: ", message);
    }
    if (--half->messages == 0) {
        set_back_lock_held(half);
    }
}

static vnxi_cuda_half_t *
find_half_lock_held(window_t *window, uint64_t token)
{
    for (unsigned i = 0; i < VNXI_WINDOW_HALVES; i++) {
        if (window->halves[i].state == HALF_SENT &&
            window->halves[i].token == token) {
            return &window->halves[i];
        }
    }
    return NULL;
}

bool
vnxi_cuda_windows_on_answer(const vnxi_port_t *port, uintptr_t conn_id,
                            const vnxi_lend_t *message,
                            const vnxi_control_t *control)
{
    bool takes = false;

    vnxi_mutex_lock(&windows_lock);
    for (window_t *window = windows; window != NULL; window = window->next) {
        if (!is_of_conn(window, port, conn_id)) {
            continue;
        }
        vnxi_cuda_half_t *half =
            message->type == VNXI_LEND_MOVED
                ? find_half_lock_held(window, message->loan)
                : NULL;
        if (half != NULL) {
            on_moved_lock_held(half, message);
        } else if (message->type == VNXI_LEND_OPENED && !takes &&
                   window->number == message->loan &&
                   window->state == STATE_ASKING && !window->is_ending) {
            takes = on_opened_lock_held(window, message, control);
        }
    }
    vnxi_mutex_unlock(&windows_lock);
    return takes;
}
