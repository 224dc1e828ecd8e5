/*
 * Bare wake-ups of threads, for measurements that spend most of their time on
 * them.
 */
#include "bare.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* -- Signalling a thread -------------------------------------------------- */

typedef struct sleeper {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    int64_t posted, finished; /* passes; protected by lock */
    bool stop;                /* protected by lock */
    double busy;              /* seconds of each pass */
} sleeper_t;

static void
sleeper_work(sleeper_t *sleeper)
{
    double end = bare_seconds_now() + sleeper->busy;

    while (bare_seconds_now() < end) {
    }
}

static void *
sleeper_run(void *argument)
{
    sleeper_t *sleeper = argument;

    pthread_mutex_lock(&sleeper->lock);
    for (;;) {
        while (sleeper->finished == sleeper->posted && !sleeper->stop) {
            pthread_cond_wait(&sleeper->work, &sleeper->lock);
        }
        if (sleeper->stop) {
            break;
        }
        pthread_mutex_unlock(&sleeper->lock);
        sleeper_work(sleeper);
        pthread_mutex_lock(&sleeper->lock);
        sleeper->finished++;
        pthread_cond_signal(&sleeper->done);
    }
    pthread_mutex_unlock(&sleeper->lock);
    return NULL;
}

static double
wake_once(sleeper_t *sleeper)
{
    double started, taken;

    pthread_mutex_lock(&sleeper->lock);
    sleeper->posted++;
    pthread_mutex_unlock(&sleeper->lock);
    started = bare_seconds_now();
    pthread_cond_signal(&sleeper->work);
    taken = bare_seconds_now() - started;

    pthread_mutex_lock(&sleeper->lock);
    while (sleeper->finished < sleeper->posted) {
        pthread_cond_wait(&sleeper->done, &sleeper->lock);
    }
    pthread_mutex_unlock(&sleeper->lock);
    return taken;
}

int64_t
vnx_bare_wake(double busy_us, double *taken, int64_t passes)
{
    sleeper_t sleeper = {.lock = PTHREAD_MUTEX_INITIALIZER,
                         .work = PTHREAD_COND_INITIALIZER,
                         .done = PTHREAD_COND_INITIALIZER,
                         .busy = busy_us * 1e-6};
    pthread_t thread;
    int error = pthread_create(&thread, NULL, sleeper_run, &sleeper);

    if (error != 0) {
        errno = error;
        return -1;
    }
    for (int64_t pass = 0; pass < passes; pass++) {
        taken[pass] = wake_once(&sleeper);
    }
    pthread_mutex_lock(&sleeper.lock);
    sleeper.stop = true;
    pthread_cond_signal(&sleeper.work);
    pthread_mutex_unlock(&sleeper.lock);
    pthread_join(thread, NULL);
    return passes;
}

/* -- Delivering a message ------------------------------------------------- */

typedef struct delivery {
    int writer, reader;  /* the ends of the connection */
    int arrived;         /* eventfd, which counts messages */
    _Atomic double sent; /* time in the last message */
} delivery_t;

static void
delivery_close(delivery_t *delivery)
{
    int error = errno;
    int fds[] = {delivery->writer, delivery->reader, delivery->arrived};

    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    errno = error;
}

static int
delivery_connect(delivery_t *delivery)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

    delivery->writer = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&at, len) == 0 &&
        listen(listener, 1) == 0 &&
        getsockname(listener, (struct sockaddr *)&at, &len) == 0 &&
        connect(delivery->writer, (struct sockaddr *)&at, len) == 0 &&
        setsockopt(delivery->writer, IPPROTO_TCP, TCP_NODELAY, &one,
                   sizeof one) == 0) {
        delivery->reader = accept(listener, NULL, NULL);
    }
    if (listener >= 0) {
        close(listener);
    }
    return delivery->reader >= 0 && delivery->arrived >= 0 ? 0 : -1;
}

static void
write_some(int socket, unsigned pause_us, int64_t passes)
{
    for (int64_t pass = 0; pass < passes; pass++) {
        double now;

        usleep(pause_us);
        now = bare_seconds_now();
        if (write(socket, &now, sizeof now) != sizeof now) {
            _exit(1);
        }
    }
    _exit(0);
}

static void *
read_all(void *argument)
{
    delivery_t *delivery = argument;
    struct pollfd readable = {.fd = delivery->reader, .events = POLLIN};
    double sent;

    while (poll(&readable, 1, -1) == 1 &&
           recv(delivery->reader, &sent, sizeof sent, MSG_WAITALL) ==
               sizeof sent) {
        delivery->sent = sent;
        eventfd_write(delivery->arrived, 1);
    }
    return NULL;
}

static int64_t
take_all(delivery_t *delivery, double *taken, int64_t passes)
{
    struct pollfd arrived = {.fd = delivery->arrived, .events = POLLIN};
    int64_t pass = 0;
    eventfd_t count;

    while (pass < passes && poll(&arrived, 1, 10000) == 1) {
        double now = bare_seconds_now();

        eventfd_read(delivery->arrived, &count);
        taken[pass++] = now - delivery->sent;
    }
    return pass;
}

int64_t
vnx_bare_deliver(unsigned pause_us, double *taken, int64_t passes)
{
    delivery_t delivery = {-1, -1, eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC), 0};
    pthread_t thread;
    int64_t done = -1;
    pid_t child;

    if (delivery_connect(&delivery) != 0) {
        delivery_close(&delivery);
        return -1;
    }
    child = fork();
    if (child == 0) {
        write_some(delivery.writer, pause_us, passes);
    }
    close(delivery.writer); /* the reader sees the end when the child ends */
    delivery.writer = -1;
    if (child > 0) {
        if (pthread_create(&thread, NULL, read_all, &delivery) == 0) {
            done = take_all(&delivery, taken, passes);
            shutdown(delivery.reader, SHUT_RDWR);
            pthread_join(thread, NULL);
        }
        waitpid(child, NULL, 0);
    }
    delivery_close(&delivery);
    return done;
}
