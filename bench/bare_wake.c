/*
 * Bare wake-ups of threads, for rows that spend most of their time on them.
 *
 *   bare_wake signal BUSY_US PASSES
 *   bare_wake deliver PAUSE_US PASSES
 *
 * Prints the seconds of each pass.
 *
 * signal: this thread signals a sleeping thread, which is then busy for a
 * while.  The time is the cost of passing work to another thread.
 *
 * deliver: another process writes to a TCP connection after a pause.  A thread
 * that sleeps on the connection reads the message and wakes this thread by an
 * eventfd.  The time is that from the write to the wake-up of this thread.  A
 * message takes this way to a sleeping program if a library's thread owns the
 * connection.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bare.h"

/* -- Signalling a thread -------------------------------------------------- */

typedef struct sleeper {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    unsigned posted, finished; /* passes; protected by lock */
    double busy;               /* seconds of each pass */
} sleeper_t;

static void *
sleeper_run(void *argument)
{
    sleeper_t *sleeper = argument;

    pthread_mutex_lock(&sleeper->lock);
    for (;;) {
        while (sleeper->finished == sleeper->posted) {
            pthread_cond_wait(&sleeper->work, &sleeper->lock);
        }
        pthread_mutex_unlock(&sleeper->lock);
        double end = seconds_now() + sleeper->busy;
        while (seconds_now() < end) {
        }
        pthread_mutex_lock(&sleeper->lock);
        sleeper->finished++;
        pthread_cond_signal(&sleeper->done);
    }
    return NULL;
}

static double
wake_once(sleeper_t *sleeper)
{
    pthread_mutex_lock(&sleeper->lock);
    sleeper->posted++;
    pthread_mutex_unlock(&sleeper->lock);
    double started = seconds_now();
    pthread_cond_signal(&sleeper->work);
    double taken = seconds_now() - started;

    pthread_mutex_lock(&sleeper->lock);
    while (sleeper->finished < sleeper->posted) {
        pthread_cond_wait(&sleeper->done, &sleeper->lock);
    }
    pthread_mutex_unlock(&sleeper->lock);
    return taken;
}

static int
run_wakes(double busy, int passes)
{
    static sleeper_t sleeper = {.lock = PTHREAD_MUTEX_INITIALIZER,
                                .work = PTHREAD_COND_INITIALIZER,
                                .done = PTHREAD_COND_INITIALIZER};
    pthread_t thread;

    sleeper.busy = busy;
    if (pthread_create(&thread, NULL, sleeper_run, &sleeper) != 0) {
        fail("pthread_create");
    }
    for (int pass = 0; pass < passes; pass++) {
        printf("%.9f\n", wake_once(&sleeper));
    }
    return 0; /* the sleeper ends with the process */
}

/* -- Delivering a message ------------------------------------------------- */

typedef struct delivery {
    int socket;          /* the reader's end */
    int arrived;         /* eventfd, which counts messages */
    _Atomic double sent; /* time in the last message */
} delivery_t;

static void
connect_pair(int *writer_p, int *reader_p)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

    *writer_p = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&at, len) != 0 ||
        listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&at, &len) != 0 ||
        connect(*writer_p, (struct sockaddr *)&at, len) != 0 ||
        setsockopt(*writer_p, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) !=
            0) {
        fail("a TCP connection");
    }
    *reader_p = accept(listener, NULL, NULL);
    close(listener);
}

static void
write_some(int socket, unsigned pause_us, int passes)
{
    for (int pass = 0; pass < passes; pass++) {
        usleep(pause_us);
        double now = seconds_now();
        if (write(socket, &now, sizeof now) != sizeof now) {
            fail("write");
        }
    }
}

static void *
read_all(void *argument)
{
    delivery_t *delivery = argument;
    struct pollfd readable = {.fd = delivery->socket, .events = POLLIN};
    double sent;

    while (poll(&readable, 1, -1) == 1 &&
           recv(delivery->socket, &sent, sizeof sent, MSG_WAITALL) ==
               sizeof sent) {
        delivery->sent = sent;
        eventfd_write(delivery->arrived, 1);
    }
    return NULL;
}

static int
run_deliveries(unsigned pause_us, int passes)
{
    delivery_t delivery = {.arrived = eventfd(0, EFD_SEMAPHORE)};
    struct pollfd arrived = {.fd = delivery.arrived, .events = POLLIN};
    pthread_t reader;
    eventfd_t count;
    int writer;

    connect_pair(&writer, &delivery.socket);
    pid_t child = fork();
    if (child == 0) {
        write_some(writer, pause_us, passes);
        _exit(0);
    }
    close(writer);
    if (child < 0 || pthread_create(&reader, NULL, read_all, &delivery) != 0) {
        fail("a second process or thread");
    }
    for (int pass = 0; pass < passes && poll(&arrived, 1, -1) == 1; pass++) {
        double now = seconds_now();
        eventfd_read(delivery.arrived, &count);
        printf("%.9f\n", now - delivery.sent);
    }
    waitpid(child, NULL, 0);
    pthread_join(reader, NULL);
    return 0;
}

int
main(int argc, char **argv)
{
    if (argc != 4 ||
        (strcmp(argv[1], "signal") != 0 && strcmp(argv[1], "deliver") != 0)) {
        fprintf(stderr, "usage: bare_wake signal BUSY_US PASSES\n"
                        "       bare_wake deliver PAUSE_US PASSES\n");
        return 2;
    }
    unsigned us = (unsigned)strtoul(argv[2], NULL, 10);
    int passes = (int)strtol(argv[3], NULL, 10);
    return strcmp(argv[1], "signal") == 0 ? run_wakes(us * 1e-6, passes)
                                          : run_deliveries(us, passes);
}
