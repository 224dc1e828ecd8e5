/*
 * Two instances, prefill and decode, exchange their metadata over the side
 * channel: one after the other, both at once, with many clients at once, and
 * at last the metadata of several ranks, requested at once by one thread.
 *
 *   side_channel_demo [--prefill-port N] [--decode-port N]
 *                     [--prefill-bytes N] [--decode-bytes N] [--clients N]
 *                     [--transport tcp|zmq|http] [--secret TEXT]
 *
 * The default ports are 18000 and 18001; 0 binds any free port.  Exits with
 * 1 if a call fails or a byte is wrong.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vnx/side_channel.h>

#define CLIENTS_MAX 64
#define RANKS 4

static vnx_side_channel_kind_t transport = VNX_SIDE_CHANNEL_TCP;
static vnx_side_channel_options_t options = {.size = sizeof options};

typedef struct instance {
    const char *name;
    int port; /* requested; after the start, bound */
    size_t size;
    unsigned char *metadata;
    vnx_side_channel_t *channel;
} instance_t;

/* One exchange: `client` requests the metadata of `server`. */
typedef struct exchange {
    const instance_t *client, *server;
    double ms;
    vnx_status_t status;
    vnx_error_t error;
    pthread_t thread;
} exchange_t;

static double
now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static int
print_error(const char *name, const vnx_error_t *error)
{
    char line[640];
    vnx_error_format(error, line, sizeof line);
    fprintf(stderr, "%s: %s\n", name, line);
    return -1;
}

static int
instance_start(instance_t *instance)
{
    vnx_error_t error;

    instance->metadata = malloc(instance->size + 1);
    if (instance->metadata == NULL) {
        perror(instance->name);
        return -1;
    }
    for (size_t i = 0; i < instance->size; i++) {
        instance->metadata[i] = (unsigned char)(i * 31 + instance->name[0]);
    }
    if (vnx_side_channel_create(transport, &options, &instance->channel,
                                &error) != VNX_OK ||
        vnx_side_channel_start(instance->channel, NULL, instance->port,
                               instance->metadata, instance->size,
                               &instance->port, &error) != VNX_OK) {
        return print_error(instance->name, &error);
    }
    printf("%-8s serves %zu bytes of metadata on port %d\n", instance->name,
           instance->size, instance->port);
    return 0;
}

static void
instance_stop(instance_t *instance)
{
    vnx_side_channel_free(instance->channel);
    free(instance->metadata);
}

static void *
exchange_run(void *arg)
{
    exchange_t *exchange = arg;
    const instance_t *server = exchange->server;
    void *metadata;
    size_t size;

    double start = now_ms();
    exchange->status = vnx_side_channel_request(
        exchange->client->channel, "localhost", server->port,
        VNX_SIDE_CHANNEL_TIMEOUT_MS, &metadata, &size, &exchange->error);
    exchange->ms = now_ms() - start;
    if (exchange->status != VNX_OK) {
        return NULL;
    }
    if (size != server->size ||
        memcmp(metadata, server->metadata, size) != 0) {
        exchange->status = VNX_ERR_MISMATCH;
        snprintf(exchange->error.cause, sizeof exchange->error.cause,
                 "received %zu bytes that differ from those served", size);
    }
    free(metadata);
    return NULL;
}

static int
exchange_report(const exchange_t *exchange)
{
    if (exchange->status != VNX_OK) {
        fprintf(stderr, "%s <- %s: %s: %s\n", exchange->client->name,
                exchange->server->name, vnx_status_name(exchange->status),
                exchange->error.cause);
        return -1;
    }
    printf("  %-8s <- %-8s %10zu bytes  %8.3f ms  equal\n",
           exchange->client->name, exchange->server->name,
           exchange->server->size, exchange->ms);
    return 0;
}

static int
one_by_one(exchange_t *exchanges, int count)
{
    int result = 0;

    printf("one by one\n");
    for (int i = 0; i < count; i++) {
        exchange_run(&exchanges[i]);
        result |= exchange_report(&exchanges[i]);
    }
    return result;
}

/* Run each in a thread; return the milliseconds until the last has ended. */
static double
run_at_once(exchange_t *exchanges, int count)
{
    double start = now_ms();

    for (int i = 0; i < count; i++) {
        int ret = pthread_create(&exchanges[i].thread, NULL, exchange_run,
                                 &exchanges[i]);
        if (ret != 0) {
            fprintf(stderr, "pthread_create: %s\n", strerror(ret));
            exit(1);
        }
    }
    for (int i = 0; i < count; i++) {
        pthread_join(exchanges[i].thread, NULL);
    }
    return now_ms() - start;
}

static int
both_at_once(exchange_t *exchanges, int count)
{
    int result = 0;

    double ms = run_at_once(exchanges, count);
    printf("at once: both in %.3f ms\n", ms);
    for (int i = 0; i < count; i++) {
        result |= exchange_report(&exchanges[i]);
    }
    return result;
}

static int
crowd(const exchange_t *pattern, int count)
{
    exchange_t exchanges[CLIENTS_MAX];
    int result = 0;

    for (int i = 0; i < count; i++) {
        exchanges[i] = pattern[i % 2];
    }
    double ms = run_at_once(exchanges, count);
    for (int i = 0; i < count; i++) {
        if (exchanges[i].status != VNX_OK) {
            result |= exchange_report(&exchanges[i]);
        }
    }
    printf("many at once: %d exchanges in %.3f ms\n", count, ms);
    return result;
}

/* The key of a rank: pipeline and tensor rank. */
static size_t
rank_key(int rank, char key[16])
{
    return (size_t)snprintf(key, 16, "0,%d", rank);
}

/* Add metadata to the running listener. */
static int
ranks_serve(const instance_t *server)
{
    vnx_error_t error;
    char key[16];

    for (int rank = 0; rank < RANKS; rank++) {
        vnx_side_channel_blob_t blob = {.key = key,
                                        .key_length = rank_key(rank, key),
                                        .data = key,
                                        .length = strlen(key)};
        if (vnx_side_channel_set(server->channel, &blob, &error) != VNX_OK) {
            return print_error(server->name, &error);
        }
    }
    return 0;
}

static int
ranks_compare(vnx_side_channel_answer_t *answer, const char *key)
{
    int result = 0;

    if (answer->status != VNX_OK) {
        return print_error(key, &answer->error);
    }
    if (answer->length != strlen(key) ||
        memcmp(answer->metadata, key, answer->length) != 0) {
        fprintf(stderr, "rank %s: wrong bytes\n", key);
        result = -1;
    }
    free(answer->metadata);
    return result;
}

static int
ranks(const instance_t *client, const instance_t *server)
{
    vnx_side_channel_request_params_t params[RANKS];
    vnx_side_channel_answer_t answers[RANKS];
    char keys[RANKS][16];
    vnx_error_t error;
    int result = 0;

    if (ranks_serve(server) != 0) {
        return -1;
    }
    for (int i = 0; i < RANKS; i++) {
        params[i] = (vnx_side_channel_request_params_t){
            .size = sizeof params[i],
            .host = "localhost",
            .port = server->port,
            .timeout_ms = VNX_SIDE_CHANNEL_TIMEOUT_MS,
            .key = keys[i],
            .key_length = rank_key(i, keys[i])};
    }
    double start = now_ms();
    if (vnx_side_channel_request_many(client->channel, params, RANKS, answers,
                                      &error) != VNX_OK) {
        return print_error(client->name, &error);
    }
    printf("ranks: %d at once in %.3f ms\n", RANKS, now_ms() - start);
    for (int i = 0; i < RANKS; i++) {
        result |= ranks_compare(&answers[i], keys[i]);
    }
    return result;
}

static vnx_side_channel_kind_t
kind_of(const char *name)
{
    static const char *const names[] = {"tcp", "zmq", "http"};

    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            return (vnx_side_channel_kind_t)i;
        }
    }
    fprintf(stderr, "unknown transport '%s'\n", name);
    exit(2);
}

static size_t
number(const char *text, size_t max)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *text == '\0' || *text == '-' || *end != '\0' ||
        value > max) {
        fprintf(stderr, "'%s' is not a number from 0 to %zu\n", text, max);
        exit(2);
    }
    return (size_t)value;
}

static void
read_options(int argc, char **argv, instance_t *prefill, instance_t *decode,
             int *clients_p)
{
    static const struct option known[] = {
        {"prefill-port", required_argument, NULL, 'p'},
        {"decode-port", required_argument, NULL, 'd'},
        {"prefill-bytes", required_argument, NULL, 'P'},
        {"decode-bytes", required_argument, NULL, 'D'},
        {"clients", required_argument, NULL, 'c'},
        {"transport", required_argument, NULL, 't'},
        {"secret", required_argument, NULL, 's'},
        {0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'p':
            prefill->port = (int)number(optarg, 65535);
            break;
        case 'd':
            decode->port = (int)number(optarg, 65535);
            break;
        case 'P':
            prefill->size = number(optarg, VNX_SIDE_CHANNEL_MAX_FRAME);
            break;
        case 'D':
            decode->size = number(optarg, VNX_SIDE_CHANNEL_MAX_FRAME);
            break;
        case 'c':
            *clients_p = (int)number(optarg, CLIENTS_MAX);
            break;
        case 't':
            transport = kind_of(optarg);
            break;
        case 's':
            options.secret = optarg;
            break;
        default:
            exit(2);
        }
    }
}

int
main(int argc, char **argv)
{
    instance_t prefill = {.name = "prefill", .port = 18000, .size = 40000};
    instance_t decode = {.name = "decode", .port = 18001, .size = 12345};
    int clients = 16, result = 1;

    read_options(argc, argv, &prefill, &decode, &clients);
    if (instance_start(&prefill) == 0 && instance_start(&decode) == 0) {
        exchange_t exchanges[2] = {
            {.client = &decode, .server = &prefill},
            {.client = &prefill, .server = &decode},
        };
        result = one_by_one(exchanges, 2);
        result |= both_at_once(exchanges, 2);
        result |= crowd(exchanges, clients);
        result |= ranks(&decode, &prefill);
    }
    instance_stop(&prefill);
    instance_stop(&decode);
    printf("%s\n", result == 0 ? "ok" : "FAILED");
    return result == 0 ? 0 : 1;
}
