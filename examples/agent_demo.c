/*
 * Two agents of one process: register memory, publish it and attach to it,
 * read some blocks, wait for the transfer, receive the notification.
 *
 *   cc agent_demo.c $(pkg-config --cflags --libs vnx) -o agent_demo
 */
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vnx/publish.h>

#define BLOCKS 256
#define BLOCK_BYTES 4096
#define PULLED 64
#define TIMEOUT_MS 10000

typedef struct side {
    const char *name;
    vnx_agent_t *agent;
    vnx_side_channel_t *channel;
    unsigned char *memory;
    vnx_strided_desc_t blocks;
} side_t;

/* Exit with the error if a call of the library failed. */
static void
check(vnx_status_t status, const vnx_error_t *error)
{
    char text[1024];

    if (status >= 0) {
        return;
    }
    vnx_error_format(error, text, sizeof text);
    fprintf(stderr, "%s\n", text);
    exit(1);
}

static void
fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* Create an agent and register one region of BLOCKS blocks. */
static void
side_init(side_t *side, const char *name)
{
    vnx_error_t error;
    vnx_reg_desc_t region = {.desc.len = (uint64_t)BLOCKS * BLOCK_BYTES};

    side->name = name;
    side->memory = calloc(BLOCKS, BLOCK_BYTES);
    if (side->memory == NULL) {
        fail("out of memory");
    }
    check(vnx_agent_create(name, strlen(name), NULL, &side->agent, &error),
          &error);
    check(vnx_agent_create_backend(side->agent, "UCX", NULL, 0, &error),
          &error);
    check(vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, NULL, &side->channel,
                                  &error),
          &error);
    region.desc.addr = (uintptr_t)side->memory;
    side->blocks = (vnx_strided_desc_t){region.desc.addr, BLOCK_BYTES, 0,
                                        BLOCK_BYTES, BLOCKS};
    check(vnx_agent_register(side->agent, VNX_MEM_DRAM, &region, 1, NULL,
                             &error),
          &error);
}

static void
side_fini(side_t *side)
{
    vnx_side_channel_free(side->channel);
    vnx_agent_release(side->agent);
    free(side->memory);
}

/* Publish the metadata and all blocks, under the name "kv". */
static int
publish(side_t *side)
{
    vnx_error_t error;
    vnx_named_rows_t kv = {.name = "kv", .strided = &side->blocks, .count = 1};
    vnx_publish_params_t params = {
        .size = sizeof params, .host = "127.0.0.1", .lists = &kv, .count = 1};
    int port;

    check(vnx_publish(side->agent, side->channel, &params, &port, &error),
          &error);
    return port;
}

static vnx_peer_t *
attach(side_t *side, int port)
{
    vnx_error_t error;
    vnx_peer_t *peer;

    check(vnx_attach(side->agent, side->channel, "127.0.0.1", port, TIMEOUT_MS,
                     0, &peer, &error),
          &error);
    printf("%s knows %s\n", side->name, vnx_peer_name(peer, NULL));
    return peer;
}

static void
pull(side_t *decode, vnx_dlist_t *local, vnx_dlist_t *remote,
     const int32_t *rows)
{
    static const char notif[] = "request-0";
    vnx_indices_t here = {.count = PULLED, .type = VNX_INDEX_I32};
    vnx_indices_t there = {rows, PULLED, VNX_INDEX_I32};
    vnx_xfer_telemetry_t times;
    vnx_error_t error;
    vnx_xfer_t *xfer;

    check(vnx_xfer_create_prepped(decode->agent, VNX_OP_READ, local, here,
                                  remote, there, notif, sizeof notif - 1,
                                  false, &xfer, &error),
          &error);
    check(vnx_xfer_post(xfer, NULL, 0, &error), &error);
    check(vnx_agent_wait(decode->agent, &xfer, 1, 0,
                         TIMEOUT_MS * UINT64_C(1000000), &error),
          &error);
    check(vnx_xfer_telemetry(xfer, &times, &error), &error);
    printf("read %llu bytes in %llu pieces, %llu us\n",
           (unsigned long long)times.total_bytes,
           (unsigned long long)times.merged_count,
           (unsigned long long)times.xfer_us);
    check(vnx_xfer_release(xfer, &error), &error);
}

/* Sleep until the notification has arrived. */
static void
await_notification(side_t *side)
{
    struct pollfd event = {.events = POLLIN};
    vnx_notif_t *notifs;
    vnx_error_t error;

    check(vnx_agent_fileno(side->agent, &event.fd, &error), &error);
    while ((notifs = vnx_agent_take_notifs(side->agent)) == NULL) {
        if (poll(&event, 1, TIMEOUT_MS) != 1) {
            fail("the notification did not arrive");
        }
    }
    printf("%s received \"%.*s\" from %.*s\n", side->name,
           (int)notifs->message_len, (const char *)notifs->message,
           (int)notifs->sender_len, notifs->sender);
    vnx_notif_free(notifs);
}

int
main(void)
{
    side_t prefill, decode;
    vnx_dlist_t *local, *remote;
    vnx_peer_t *peer;
    vnx_error_t error;
    int32_t rows[PULLED];

    side_init(&prefill, "prefill");
    side_init(&decode, "decode");
    for (int i = 0; i < BLOCKS; i++) {
        memset(prefill.memory + (size_t)i * BLOCK_BYTES, i, BLOCK_BYTES);
    }
    peer = attach(&decode, publish(&prefill));
    check(vnx_peer_rows(peer, "kv", &remote, &error), &error);
    check(vnx_dlist_create_strided(decode.agent, NULL, 0, VNX_MEM_DRAM,
                                   &decode.blocks, 1, NULL, &local, &error),
          &error);
    for (int i = 0; i < PULLED; i++) {
        rows[i] = (i * 37 + 5) % BLOCKS; /* 37 and 256 share no factor */
    }
    pull(&decode, local, remote, rows);
    await_notification(&prefill);
    for (int i = 0; i < PULLED; i++) {
        if (memcmp(decode.memory + (size_t)i * BLOCK_BYTES,
                   prefill.memory + (size_t)rows[i] * BLOCK_BYTES,
                   BLOCK_BYTES) != 0) {
            fail("a block has wrong content");
        }
    }
    puts("every byte is correct");
    vnx_peer_free(peer);
    vnx_dlist_release(local);
    side_fini(&decode);
    side_fini(&prefill);
    return 0;
}
