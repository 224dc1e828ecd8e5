/*
 * Design notes.  A request needs only constants of the channel, so it works in
 * a forked child too, and takes no lock.  But one that was made before the
 * fork belongs to the parent, whose epoll set and whose streams the child
 * shares: the child must not end it in an orderly way.
 *
 * A set has one epoll set for all its requests, or none for a single request
 * that is waited for.  Registrations are one-shot and renewed after each step.
 * So a descriptor that a transport closed, and that lives on in a forked
 * child, is reported at most once.  A step without a reason does no harm.
 *
 * A request whose peer is not there rests, and when it is due, it queues up to
 * be tried again.  The requests are checked only once `next_due` is past.
 *
 * The number of requests that are tried at once is limited to half of the file
 * descriptors that the process may have.  The others wait for their turn, and
 * their time runs.  A few requests begin in each round.  Those that are
 * answered quickly make room, and their memory is still in the processor's
 * caches when the next ones begin.
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/params.h"
#include "net/acceptor.h"
#include "net/resolve.h"
#include "side_channel/channel.h"

#define EVENTS 64
#define ROUNDS_MAX 64                 /* per call; other code has work too */
#define STEP_MAX_NS UINT64_C(2000000) /* likewise, for long rounds */
#define BEGIN_MAX 32                  /* per round */
#define WINDOW_MAX 8192
#define TIMER UINT32_MAX /* index of an event: the timer */
#define BACKOFF_MAX_MS 1000
#define KEY_TEXT_MAX 96
#define MS UINT64_C(1000000)

struct vnxi_requests {
    vnx_side_channel_t *channel; /* held */
    const vnxi_transport_t *transport;
    int epoll_fd;   /* -1: a single request, waited for without a set */
    int timer_fd;   /* -1: the program does not watch epoll_fd */
    unsigned forks; /* fork count at creation */
    size_t count, open, trying, window;
    TAILQ_HEAD(, vnxi_request) queue; /* those that may be tried */
    uint64_t next_due;                /* no request is due before this time */
    vnxi_request_t list[];
};

/* -- Records -------------------------------------------------------------- */

vnx_status_t
vnxi_request_failed(vnxi_request_t *request, vnx_status_t status,
                    const char *reason, ...)
{
    vnx_error_t *error = &request->answer.error;
    char text[VNX_ERROR_CAUSE_MAX];
    va_list args;

    va_start(args, reason);
    vsnprintf(text, sizeof text, reason, args);
    va_end(args);
    vnxi_error_set(error, status, VNXI_OP_REQUEST, "%s %s: %s (after %llu ms)",
                   request->phase, request->whom, text,
                   (unsigned long long)(vnxi_clock_ns() - request->start) /
                       MS);
    vnxi_error_peer(error, request->endpoint, strlen(request->endpoint));
    return status;
}

vnx_status_t
vnxi_request_no_memory(vnxi_request_t *request)
{
    return vnxi_request_failed(request, VNX_ERR_NO_MEMORY,
                               "no memory for the reply");
}

vnx_status_t
vnxi_request_answer(vnxi_request_t *request, vnxi_body_t *body)
{
    vnx_side_channel_answer_t *answer = &request->answer;

    answer->metadata = vnxi_body_take(body, &answer->length);
    return answer->metadata != NULL ? VNX_OK : vnxi_request_no_memory(request);
}

vnx_status_t
vnxi_request_no_key(vnxi_request_t *request)
{
    vnx_error_t *error = &request->answer.error;
    char text[KEY_TEXT_MAX];

    request->answered = true;
    if (request->key_len == 0) {
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, VNXI_OP_REQUEST,
                       "nothing is served by default: name a key");
    } else {
        vnxi_key_text(request->key, request->key_len, text, sizeof text);
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, VNXI_OP_REQUEST,
                       "nothing is served under the key '%s'", text);
    }
    vnxi_error_peer(error, request->endpoint, strlen(request->endpoint));
    return VNX_ERR_NOT_FOUND;
}

/* -- Parameters ----------------------------------------------------------- */

static vnx_status_t
check(const vnx_side_channel_request_params_t *params, vnx_error_t *error)
{
    if (params->host == NULL || params->host[0] == '\0') {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "no host");
    }
    if (params->port < 1 || params->port > 65535) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "port %d is not in 1 to 65535", params->port);
    }
    if (params->timeout_ms <= 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "a timeout of %d ms is not above 0",
                              params->timeout_ms);
    }
    return vnxi_key_check(VNXI_OP_REQUEST, params->key, params->key_length,
                          error);
}

/* Read the parameters of request `index` into this library's struct, and check
 * them.  All of them have the size of the first. */
static vnx_status_t
read_params(const vnx_side_channel_request_params_t *given, size_t index,
            vnx_side_channel_request_params_t *out_p, vnx_error_t *error)
{
    const unsigned char *at = (const void *)given;

    vnx_status_t status =
        vnxi_params_read(VNXI_OP_REQUEST, "params", at + index * given->size,
                         given->size, out_p, sizeof *out_p, error);
    return status == VNX_OK ? check(out_p, error) : status;
}

/* -- One request ---------------------------------------------------------- */

static bool
request_init(vnxi_request_t *request,
             const vnx_side_channel_request_params_t *given,
             const vnx_side_channel_options_t *options, uint64_t now)
{
    size_t host_size = strlen(given->host) + 1;
    char *text = malloc(host_size + given->key_length + VNX_ERROR_PEER_MAX);

    if (text == NULL) {
        return false;
    }
    char *key = text + host_size, *endpoint = key + given->key_length;
    memcpy(text, given->host, host_size);
    if (given->key_length > 0) {
        memcpy(key, given->key, given->key_length);
    }
    vnxi_endpoint_text(endpoint, VNX_ERROR_PEER_MAX, given->host, given->port);
    *request = (vnxi_request_t){
        .host = text,
        .port = given->port,
        .key = key,
        .key_len = given->key_length,
        .endpoint = endpoint,
        .options = options,
        .start = now,
        .deadline = now + (uint64_t)given->timeout_ms * MS,
        .due = now + (uint64_t)given->timeout_ms * MS,
        .text = text,
        .phase = "waiting to ask",
        .whom = text,
        .fd = -1,
        .watched = -1,
        .has_retries = given->retries > 0,
        .retries = given->retries,
        .backoff_ms = given->backoff_ms > 0 ? given->backoff_ms
                                            : VNX_SIDE_CHANNEL_BACKOFF_MS,
    };
    return true;
}

static void
stop_trying(vnxi_requests_t *set, vnxi_request_t *request)
{
    if (request->state == VNXI_REQUEST_TRYING) {
        set->trying--;
    }
    if (request->client != NULL) {
        set->transport->end(request);
        free(request->client);
        request->client = NULL;
    }
    request->whom = request->host; /* not an address in `client` */
    request->fd = request->watched = -1;
}

/* End the request with its current answer. */
static void
end(vnxi_requests_t *set, vnxi_request_t *request, vnx_status_t status)
{
    if (request->state == VNXI_REQUEST_QUEUED) {
        TAILQ_REMOVE(&set->queue, request, link);
    }
    stop_trying(set, request);
    request->answer.status = status;
    request->state = VNXI_REQUEST_ENDED;
    set->open--;
}

/* -- Trying --------------------------------------------------------------- */

/* Might another try succeed?  The peer or its name does not exist yet, or the
 * peer broke off. */
static bool
is_worth_another_try(const vnxi_request_t *request, vnx_status_t status)
{
    return status == VNX_ERR_BACKEND ||
           (status == VNX_ERR_NOT_FOUND && !request->answered);
}

/* Compute the time until the next try.  Half of it is random, so that clients
 * that were refused at the same time do not all return at the same time. */
static uint64_t
backoff_ns(vnxi_request_t *request, uint64_t now)
{
    uint64_t ns = request->backoff_ms * MS;
    request->backoff_ms *= 2;
    if (request->backoff_ms > BACKOFF_MAX_MS) {
        request->backoff_ms = BACKOFF_MAX_MS;
    }
    return ns / 2 + (now ^ (uintptr_t)request) % (ns / 2 + 1);
}

static void
set_due(vnxi_requests_t *set, vnxi_request_t *request, uint64_t due)
{
    request->due = due < request->deadline ? due : request->deadline;
    if (request->due < set->next_due) {
        set->next_due = request->due;
    }
}

/* Tell a caller that did not ask for retries about them, if nobody listens. */
static void
advise_retries(vnxi_request_t *request, vnx_status_t status)
{
    if (status == VNX_ERR_BACKEND && !request->has_retries &&
        strcmp(request->phase, VNXI_PHASE_CONNECTING) == 0) {
        vnxi_error_add(&request->answer.error,
                       "; the listener may not be up yet: retries=N tries N "
                       "more times, retries=None until the timeout");
    }
}

static void
try_failed(vnxi_requests_t *set, vnxi_request_t *request, vnx_status_t status)
{
    uint64_t now = vnxi_clock_ns();

    if (request->retries > 0 && is_worth_another_try(request, status)) {
        uint64_t due = now + backoff_ns(request, now);
        if (due < request->deadline) {
            if (request->retries != VNX_SIDE_CHANNEL_RETRY_ALWAYS) {
                request->retries--;
            }
            vnxi_log(VNX_LOG_DEBUG, NULL,
                     "side channel: %s: tries again in %u ms: %s",
                     request->endpoint, (unsigned)((due - now) / MS),
                     request->answer.error.cause);
            stop_trying(set, request);
            request->answer.status = status;
            request->state = VNXI_REQUEST_RESTING;
            set_due(set, request, due);
            return;
        }
    }
    advise_retries(request, status);
    end(set, request, status);
}

/* Register the descriptor.  Returns 0 or errno. */
static int
watch(vnxi_requests_t *set, vnxi_request_t *request)
{
    struct epoll_event event = {
        .events = EPOLLONESHOT |
                  (request->events & POLLIN ? (uint32_t)EPOLLIN : 0) |
                  (request->events & POLLOUT ? (uint32_t)EPOLLOUT : 0),
        .data.u32 = (uint32_t)(request - set->list)};
    int op = request->fd == request->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int ret = 0;

    request->watched = request->fd;
    if (request->fd >= 0 && set->epoll_fd >= 0) {
        ret = epoll_ctl(set->epoll_fd, op, request->fd, &event);
        if (ret != 0 && (errno == ENOENT || errno == EEXIST)) {
            op = op == EPOLL_CTL_MOD ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
            ret = epoll_ctl(set->epoll_fd, op, request->fd, &event);
        }
    }
    return ret == 0 ? 0 : errno;
}

static void
request_step(vnxi_requests_t *set, vnxi_request_t *request)
{
    vnx_status_t status = set->transport->step(request);

    if (status == VNX_IN_PROG) {
        int err = watch(set, request);
        if (err == 0) {
            set_due(set, request, request->wake);
            return;
        }
        status = vnxi_request_failed(request, VNX_ERR_BACKEND,
                                     "waiting for a descriptor: %s",
                                     vnxi_errno(err));
    }
    if (status == VNX_OK) {
        end(set, request, VNX_OK);
    } else {
        try_failed(set, request, status);
    }
}

static void
request_try(vnxi_requests_t *set, vnxi_request_t *request)
{
    TAILQ_REMOVE(&set->queue, request, link);
    request->state = VNXI_REQUEST_TRYING;
    request->wake = UINT64_MAX;
    request->answered = false;
    set->trying++;
    request->client = calloc(1, set->transport->client_size);
    vnx_status_t status =
        request->client != NULL
            ? vnxi_channel_check(set->channel, VNXI_OP_REQUEST,
                                 request->endpoint, &request->answer.error)
            : vnxi_error_no_memory(&request->answer.error, VNXI_OP_REQUEST,
                                   set->transport->client_size);
    if (status == VNX_OK) {
        status = set->transport->begin(request);
    }
    if (status == VNX_OK) {
        request_step(set, request);
    } else {
        free(request->client);
        request->client = NULL;
        try_failed(set, request, status);
    }
}

static void
queue_up(vnxi_requests_t *set, vnxi_request_t *request)
{
    request->state = VNXI_REQUEST_QUEUED;
    TAILQ_INSERT_TAIL(&set->queue, request, link);
    set_due(set, request, request->deadline);
}

/* The request is due. */
static void
wake(vnxi_requests_t *set, vnxi_request_t *request, uint64_t now)
{
    if (request->state == VNXI_REQUEST_TRYING) {
        request_step(set, request);
    } else if (now < request->deadline) {
        queue_up(set, request);
    } else if (request->answer.status != VNX_OK) {
        end(set, request, request->answer.status); /* of the last try */
    } else {
        vnxi_request_failed(request, VNX_ERR_TIMEOUT, "timed out");
        end(set, request, VNX_ERR_TIMEOUT);
    }
}

/* -- Creation ------------------------------------------------------------- */

static vnxi_requests_t *
set_new(vnx_side_channel_t *channel, size_t count)
{
    if (count >
        (SIZE_MAX - sizeof(vnxi_requests_t)) / sizeof(vnxi_request_t)) {
        return NULL;
    }
    vnxi_requests_t *set =
        calloc(1, sizeof *set + count * sizeof(vnxi_request_t));
    if (set != NULL) {
        vnxi_channel_enter(channel);
        vnxi_fork_on_child(NULL); /* start counting forks */
        set->forks = vnxi_fork_count();
        set->channel = channel;
        set->transport = channel->transport;
        set->count = set->open = count;
        TAILQ_INIT(&set->queue);
        set->window =
            vnxi_acceptor_connections(2 * channel->transport->fds, WINDOW_MAX);
        set->epoll_fd = set->timer_fd = -1;
    }
    return set;
}

static vnx_status_t
make_epoll(vnxi_requests_t *set, vnx_error_t *error)
{
    set->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return set->epoll_fd >= 0
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_BACKEND, VNXI_OP_REQUEST,
                                "epoll_create1: %s", vnxi_errno(errno));
}

static vnx_status_t
init_all(vnxi_requests_t *set, const vnx_side_channel_request_params_t *given,
         vnx_error_t *error)
{
    uint64_t now = vnxi_clock_ns();
    vnx_side_channel_request_params_t params;

    for (size_t i = 0; i < set->count; i++) {
        vnx_status_t status = read_params(given, i, &params, error);
        if (status != VNX_OK) {
            if (set->count > 1 && error != NULL) {
                vnxi_error_row(error, i);
            }
            return status;
        }
        if (!request_init(&set->list[i], &params, &set->channel->options,
                          now)) {
            return vnxi_error_no_memory(error, VNXI_OP_REQUEST,
                                        VNX_ERROR_PEER_MAX);
        }
        queue_up(set, &set->list[i]);
    }
    return set->count > 1 ? make_epoll(set, error) : VNX_OK;
}

vnx_status_t
vnxi_requests_make(vnx_side_channel_t *channel,
                   const vnx_side_channel_request_params_t *params,
                   size_t count, vnxi_requests_t **out_p, vnx_error_t *error)
{
    vnxi_requests_t *set = set_new(channel, count);

    if (set == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_REQUEST,
                                    count * sizeof(vnxi_request_t));
    }
    vnx_status_t status = init_all(set, params, error);
    if (status != VNX_OK) {
        vnxi_requests_free(set);
        return status;
    }
    *out_p = set;
    return VNX_OK;
}

void
vnxi_requests_free(vnxi_requests_t *set)
{
    if (set == NULL || vnxi_fork_crossed(set->forks)) {
        return;
    }
    for (size_t i = 0; i < set->count; i++) {
        stop_trying(set, &set->list[i]);
        free(set->list[i].answer.metadata);
        free(set->list[i].text);
    }
    if (set->timer_fd >= 0) {
        close(set->timer_fd);
    }
    if (set->epoll_fd >= 0) {
        close(set->epoll_fd);
    }
    vnxi_channel_leave(set->channel);
    free(set);
}

/* -- All requests --------------------------------------------------------- */

/* May another request begin? */
static bool
has_next(const vnxi_requests_t *set)
{
    return !TAILQ_EMPTY(&set->queue) && set->trying < set->window;
}

static void
begin_some(vnxi_requests_t *set)
{
    for (int i = 0; i < BEGIN_MAX && has_next(set); i++) {
        request_try(set, TAILQ_FIRST(&set->queue));
    }
}

static void
check_due(vnxi_requests_t *set)
{
    uint64_t now = vnxi_clock_ns();

    if (now < set->next_due) {
        return;
    }
    set->next_due = UINT64_MAX;
    for (size_t i = 0; i < set->count; i++) {
        vnxi_request_t *request = &set->list[i];
        if (request->state == VNXI_REQUEST_ENDED) {
            continue;
        }
        if (now >= request->due) {
            wake(set, request, now);
        } else {
            set_due(set, request, request->due);
        }
    }
}

/* Handle what is due, and begin requests.  Called after anything that may have
 * ended requests; afterwards `next_due` is correct. */
static void
look_at_all(vnxi_requests_t *set)
{
    check_due(set);
    begin_some(set);
}

static void
timer_drain(vnxi_requests_t *set)
{
    uint64_t times;
    ssize_t got = read(set->timer_fd, &times, sizeof times);
    (void)got; /* makes the timer unreadable; the value is not used */
}

/* Wait like epoll_wait().  A single request that is waited for needs no set,
 * and no descriptor except its own. */
static int
set_wait(vnxi_requests_t *set, struct epoll_event events[EVENTS],
         int timeout_ms)
{
    const vnxi_request_t *request = &set->list[0];
    struct pollfd entry = {.fd = request->fd, .events = request->events};

    if (set->epoll_fd >= 0) {
        return epoll_wait(set->epoll_fd, events, EVENTS, timeout_ms);
    }
    events[0].data.u32 = 0;
    return poll(&entry, 1, timeout_ms);
}

/* Wait up to `timeout_ms`, then handle the events.  Returns their number, or
 * -1 with errno set. */
static int
set_round(vnxi_requests_t *set, int timeout_ms)
{
    struct epoll_event events[EVENTS];

    if (set->open == 0) {
        return 0;
    }
    int count = set_wait(set, events, timeout_ms);
    for (int i = 0; i < count; i++) {
        uint32_t index = events[i].data.u32;
        if (index == TIMER) {
            timer_drain(set);
        } else if (set->list[index].state == VNXI_REQUEST_TRYING) {
            request_step(set, &set->list[index]);
        }
    }
    look_at_all(set);
    return count;
}

/* Return the time to wait, rounded up, so that a wait never ends early. */
static int
round_ms(const vnxi_requests_t *set, uint64_t now, uint64_t most_ms)
{
    if (has_next(set)) {
        return 0;
    }
    uint64_t ns = set->next_due > now ? set->next_due - now : 0;
    uint64_t ms = ns / MS + (ns % MS != 0);
    return (int)(ms < most_ms ? ms : most_ms);
}

static void
cancel_all(vnxi_requests_t *set)
{
    for (size_t i = 0; i < set->count; i++) {
        vnxi_request_t *request = &set->list[i];
        if (request->state != VNXI_REQUEST_ENDED) {
            request->phase = "waiting for";
            request->whom = request->host;
            vnxi_request_failed(request, VNX_ERR_CANCELED, "interrupted");
            end(set, request, VNX_ERR_CANCELED);
        }
    }
}

/* In a forked child: fail the parent's requests, and leave everything else of
 * them alone. */
static void
disown_all(vnxi_requests_t *set)
{
    for (size_t i = 0; i < set->count; i++) {
        vnxi_request_t *request = &set->list[i];
        vnx_error_t *error = &request->answer.error;
        if (request->state == VNXI_REQUEST_ENDED) {
            continue;
        }
        vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, VNXI_OP_REQUEST,
                       "it was made before this process was forked: ask "
                       "again here");
        vnxi_error_peer(error, request->endpoint, strlen(request->endpoint));
        request->answer.status = VNX_ERR_NOT_ALLOWED;
        request->state = VNXI_REQUEST_ENDED;
    }
    set->open = 0;
}

bool
vnxi_requests_run(vnxi_requests_t *set, bool (*interrupted)(void *arg),
                  void *arg)
{
    uint64_t most_ms = interrupted != NULL ? VNXI_REQUESTS_SLICE_MS : 60000;
    uint64_t asked = vnxi_clock_ns();

    look_at_all(set); /* next_due is 0: sets it */
    while (set->open > 0) {
        uint64_t now = vnxi_clock_ns();
        int count = set_round(set, round_ms(set, now, most_ms));
        bool signalled = count < 0;
        if (interrupted == NULL ||
            (!signalled &&
             vnxi_clock_ns() - asked < VNXI_REQUESTS_SLICE_MS * MS)) {
            continue;
        }
        asked = vnxi_clock_ns();
        bool is_over = interrupted(arg);
        if (vnxi_fork_crossed(set->forks)) {
            disown_all(set); /* a handler of a signal has forked */
        } else if (is_over) {
            cancel_all(set);
        }
        if (is_over) {
            return false;
        }
    }
    return true;
}

static void
timer_arm(vnxi_requests_t *set)
{
    struct itimerspec when = {0};

    if (has_next(set)) {
        when.it_value.tv_nsec = 1; /* in the past: fires at once */
    } else if (set->open > 0 && set->next_due != UINT64_MAX) {
        when.it_value = vnxi_clock_timespec(set->next_due);
    }
    timerfd_settime(set->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

vnx_status_t
vnxi_requests_watch(vnxi_requests_t *set, int *fd_p, vnx_error_t *error)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = TIMER};

    if (set->epoll_fd < 0) {
        vnx_status_t status = make_epoll(set, error);
        if (status != VNX_OK) {
            return status;
        }
    }
    set->timer_fd =
        timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (set->timer_fd < 0 ||
        epoll_ctl(set->epoll_fd, EPOLL_CTL_ADD, set->timer_fd, &event) != 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, VNXI_OP_REQUEST,
                              "no timer: %s", vnxi_errno(errno));
    }
    *fd_p = set->epoll_fd;
    vnxi_requests_step(set);
    return VNX_OK;
}

size_t
vnxi_requests_step(vnxi_requests_t *set)
{
    if (vnxi_fork_crossed(set->forks)) {
        disown_all(set);
        return 0;
    }
    uint64_t start = vnxi_clock_ns();
    for (int i = 0; i < ROUNDS_MAX; i++) {
        if ((set_round(set, 0) <= 0 && !has_next(set)) ||
            vnxi_clock_ns() - start >= STEP_MAX_NS) {
            break;
        }
    }
    timer_arm(set);
    return set->open;
}

bool
vnxi_requests_is_unknown_key(const vnxi_requests_t *set, size_t index)
{
    return set->list[index].answer.status == VNX_ERR_NOT_FOUND &&
           set->list[index].answered;
}

void
vnxi_requests_take(vnxi_requests_t *set, size_t index,
                   vnx_side_channel_answer_t *answer_p)
{
    *answer_p = set->list[index].answer;
    set->list[index].answer.metadata = NULL;
}

/* -- Requests that are waited for ------------------------------------------
 */

vnx_status_t
vnx_side_channel_request_many(vnx_side_channel_t *channel,
                              const vnx_side_channel_request_params_t *params,
                              size_t count, vnx_side_channel_answer_t *answers,
                              vnx_error_t *error)
{
    vnxi_requests_t *requests = NULL;

    vnx_status_t status =
        vnxi_requests_make(channel, params, count, &requests, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_requests_run(requests, NULL, NULL);
    for (size_t i = 0; i < count; i++) {
        vnxi_requests_take(requests, i, &answers[i]);
    }
    vnxi_requests_free(requests);
    return VNX_OK;
}

vnx_status_t
vnx_side_channel_request_with(vnx_side_channel_t *channel,
                              const vnx_side_channel_request_params_t *params,
                              void **metadata_p, size_t *length_p,
                              vnx_error_t *error)
{
    vnx_side_channel_answer_t answer;

    vnx_status_t status =
        vnx_side_channel_request_many(channel, params, 1, &answer, error);
    if (status != VNX_OK) {
        return status;
    }
    if (answer.status != VNX_OK) {
        if (error != NULL) {
            *error = answer.error;
        }
        return answer.status;
    }
    *metadata_p = answer.metadata;
    *length_p = answer.length;
    return VNX_OK;
}

vnx_status_t
vnx_side_channel_request(vnx_side_channel_t *channel, const char *host,
                         int port, int timeout_ms, void **metadata_p,
                         size_t *length_p, vnx_error_t *error)
{
    vnx_side_channel_request_params_t params = {.size = sizeof params,
                                                .host = host,
                                                .port = port,
                                                .timeout_ms = timeout_ms};
    return vnx_side_channel_request_with(channel, &params, metadata_p,
                                         length_p, error);
}
