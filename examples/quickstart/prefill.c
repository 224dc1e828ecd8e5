/* Publish a KV cache, and wait until another agent has read it. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vnx/publish.h>

#define BLOCKS 4096
#define BLOCK_BYTES 65536
#define BYTES ((uint64_t)BLOCKS * BLOCK_BYTES)

static void
check(vnx_status_t status, const vnx_error_t *error)
{
    char text[1024];

    if (status < 0) {
        vnx_error_format(error, text, sizeof text);
        fprintf(stderr, "%s\n", text);
        exit(1);
    }
}

int
main(int argc, char **argv)
{
    unsigned char *cache = malloc(BYTES);
    vnx_side_channel_t *channel;
    vnx_notif_t *notifs;
    vnx_agent_t *agent;
    vnx_error_t error;

    if (cache == NULL) {
        return 1;
    }
    for (int i = 0; i < BLOCKS; i++) {
        memset(cache + (size_t)i * BLOCK_BYTES, i % 251, BLOCK_BYTES);
    }

    check(vnx_agent_create("prefill", 7, NULL, &agent, &error), &error);
    check(vnx_agent_create_backend(agent, "UCX", NULL, 0, &error), &error);
    vnx_reg_desc_t region = {.desc = {(uintptr_t)cache, BYTES, 0}};
    check(vnx_agent_register(agent, VNX_MEM_DRAM, &region, 1, NULL, &error),
          &error);

    vnx_strided_desc_t blocks = {(uintptr_t)cache, BLOCK_BYTES, 0, BLOCK_BYTES,
                                 BLOCKS};
    vnx_named_rows_t kv = {.name = "kv", .strided = &blocks, .count = 1};
    vnx_publish_params_t params = {.size = sizeof params,
                                   .port = argc > 1 ? atoi(argv[1]) : 18000,
                                   .lists = &kv,
                                   .count = 1};
    check(
        vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, NULL, &channel, &error),
        &error);
    check(vnx_publish(agent, channel, &params, NULL, &error), &error);
    puts("serving");
    fflush(stdout);

    struct pollfd event = {.events = POLLIN};
    check(vnx_agent_fileno(agent, &event.fd, &error), &error);
    while ((notifs = vnx_agent_take_notifs(agent)) == NULL) {
        if (poll(&event, 1, -1) != 1) {
            perror("poll");
            return 1;
        }
    }
    printf("%.*s: %.*s\n", (int)notifs->sender_len, notifs->sender,
           (int)notifs->message_len, (const char *)notifs->message);

    vnx_notif_free(notifs);
    vnx_side_channel_free(channel);
    vnx_agent_release(agent);
    free(cache);
    return 0;
}
