/* Read the KV cache that prefill has published. */
#include <stdio.h>
#include <stdlib.h>
#include <vnx/publish.h>

#define BLOCKS 4096
#define BLOCK_BYTES 65536
#define BYTES ((uint64_t)BLOCKS * BLOCK_BYTES)
#define SECOND_NS UINT64_C(1000000000)

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
    unsigned char *cache = calloc(BLOCKS, BLOCK_BYTES);
    vnx_dlist_t *local, *remote; /* prepared lists */
    vnx_side_channel_t *channel;
    vnx_agent_t *agent;
    vnx_peer_t *peer;
    vnx_xfer_t *xfer;
    vnx_error_t error;

    if (cache == NULL) {
        return 1;
    }
    check(vnx_agent_create("decode", 6, NULL, &agent, &error), &error);
    check(vnx_agent_create_backend(agent, "UCX", NULL, 0, &error), &error);
    vnx_reg_desc_t region = {.desc = {(uintptr_t)cache, BYTES, 0}};
    check(vnx_agent_register(agent, VNX_MEM_DRAM, &region, 1, NULL, &error),
          &error);
    vnx_strided_desc_t blocks = {(uintptr_t)cache, BLOCK_BYTES, 0, BLOCK_BYTES,
                                 BLOCKS};
    check(vnx_dlist_create_strided(agent, NULL, 0, VNX_MEM_DRAM, &blocks, 1,
                                   NULL, &local, &error),
          &error);

    /* For up to a minute, wait until prefill is serving. */
    check(
        vnx_side_channel_create(VNX_SIDE_CHANNEL_TCP, NULL, &channel, &error),
        &error);
    check(vnx_attach(agent, channel, "localhost",
                     argc > 1 ? atoi(argv[1]) : 18000, 60000,
                     VNX_SIDE_CHANNEL_RETRY_ALWAYS, &peer, &error),
          &error);
    check(vnx_peer_rows(peer, "kv", &remote, &error), &error);

    /* All blocks, in their order; to select some, pass their indices. */
    vnx_indices_t all = {.count = BLOCKS};
    check(vnx_xfer_create_prepped(agent, VNX_OP_READ, local, all, remote, all,
                                  "done", 4, false, &xfer, &error),
          &error);
    check(vnx_xfer_post(xfer, NULL, 0, &error), &error);
    check(vnx_agent_wait(agent, &xfer, 1, 0, 60 * SECOND_NS, &error), &error);
    for (uint64_t i = 0; i < BYTES; i++) {
        if (cache[i] != i / BLOCK_BYTES % 251) {
            fprintf(stderr, "byte %llu is wrong\n", (unsigned long long)i);
            return 1;
        }
    }
    puts("all blocks are here");

    check(vnx_xfer_release(xfer, &error), &error);
    vnx_peer_free(peer);
    vnx_side_channel_free(channel);
    vnx_dlist_release(local);
    vnx_agent_release(agent);
    free(cache);
    return 0;
}
