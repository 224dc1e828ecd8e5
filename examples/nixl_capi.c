/*
 * NIXL's C interface: two agents in one program, a READ by index, and a
 * notification.  The same source works with NIXL's library, whose header is
 * not installed: include ours and link with -lnixl_capi of either.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vnx/nixl_capi.h>

#define BLOCKS 16
#define BLOCK_BYTES 65536
#define BYTES ((size_t)BLOCKS * BLOCK_BYTES)

static void
check(const char *what, nixl_capi_status_t status)
{
    if (status < 0) {
        fprintf(stderr, "%s: status %d\n", what, (int)status);
        exit(1);
    }
}

#define CHECK(call) check(#call, nixl_capi_##call)

/* An agent with the backend UCX that has registered its memory. */
static nixl_capi_agent_t
make_agent(const char *name, unsigned char *memory)
{
    nixl_capi_agent_t agent;
    nixl_capi_params_t params;
    nixl_capi_mem_list_t mems;
    nixl_capi_backend_t backend;
    nixl_capi_reg_dlist_t region;

    CHECK(create_agent(name, &agent));
    CHECK(get_plugin_params(agent, "UCX", &mems, &params));
    CHECK(create_backend(agent, "UCX", params, &backend));
    CHECK(destroy_mem_list(mems));
    CHECK(destroy_params(params));
    CHECK(destroy_backend(backend)); /* the handle; the backend stays */
    CHECK(create_reg_dlist(NIXL_CAPI_MEM_DRAM, &region));
    CHECK(reg_dlist_add_desc(region, (uintptr_t)memory, BYTES, 0, NULL, 0));
    CHECK(register_mem(agent, region, NULL));
    CHECK(destroy_reg_dlist(region));
    return agent;
}

/* All blocks, for use by index; "" is the agent itself. */
static nixl_capi_xfer_dlist_handle_t
prepare(nixl_capi_agent_t agent, const char *owner, unsigned char *memory)
{
    nixl_capi_xfer_dlist_t blocks;
    nixl_capi_xfer_dlist_handle_t prepared;

    CHECK(create_xfer_dlist(NIXL_CAPI_MEM_DRAM, &blocks));
    for (size_t i = 0; i < BLOCKS; i++) {
        CHECK(xfer_dlist_add_desc(blocks, (uintptr_t)memory + i * BLOCK_BYTES,
                                  BLOCK_BYTES, 0));
    }
    CHECK(prep_xfer_dlist(agent, owner, blocks, &prepared, NULL));
    CHECK(destroy_xfer_dlist(blocks));
    return prepared;
}

/* `by` gets to know `other`.  Between processes, send the bytes. */
static void
introduce(nixl_capi_agent_t other, nixl_capi_agent_t by)
{
    void *metadata;
    size_t len;
    char *name;

    CHECK(get_local_md(other, &metadata, &len));
    CHECK(load_remote_md(by, metadata, len, &name));
    free(metadata);
    free(name);
}

static void
pause_shortly(void)
{
    const struct timespec ms = {.tv_nsec = 1000000};
    nanosleep(&ms, NULL);
}

/* Read block 5 of prefill into block 3, and tell prefill. */
static void
read_block(nixl_capi_agent_t decode, unsigned char *to, unsigned char *from)
{
    nixl_capi_xfer_dlist_handle_t local = prepare(decode, "", to);
    nixl_capi_xfer_dlist_handle_t remote = prepare(decode, "prefill", from);
    const int local_block = 3, remote_block = 5;
    nixl_capi_opt_args_t options;
    nixl_capi_xfer_req_t request;

    CHECK(create_opt_args(&options));
    CHECK(opt_args_set_notif_msg(options, "block 5", 7));
    CHECK(opt_args_set_has_notif(options, true));
    CHECK(make_xfer_req(decode, NIXL_CAPI_XFER_OP_READ, local, &local_block, 1,
                        remote, &remote_block, 1, &request, options));
    CHECK(destroy_opt_args(options));
    CHECK(post_xfer_req(decode, request, NULL));
    while (nixl_capi_get_xfer_status(decode, request) == NIXL_CAPI_IN_PROG) {
        pause_shortly();
    }
    CHECK(get_xfer_status(decode, request));
    CHECK(release_xfer_req(decode, request));
    CHECK(destroy_xfer_req(request));
    CHECK(release_xfer_dlist_handle(decode, local));
    CHECK(release_xfer_dlist_handle(decode, remote));
}

/* Wait for the first notification, and print it. */
static void
print_notification(nixl_capi_agent_t agent)
{
    nixl_capi_notif_map_t notifs;
    const char *sender;
    const void *message;
    size_t senders = 0, len;

    CHECK(create_notif_map(&notifs));
    while (senders == 0) {
        pause_shortly();
        CHECK(get_notifs(agent, notifs, NULL));
        CHECK(notif_map_size(notifs, &senders));
    }
    CHECK(notif_map_get_agent_at(notifs, 0, &sender));
    CHECK(notif_map_get_notif(notifs, sender, 0, &message, &len));
    printf("%s has read %.*s\n", sender, (int)len, (const char *)message);
    CHECK(destroy_notif_map(notifs));
}

int
main(void)
{
    unsigned char *source = malloc(BYTES), *target = malloc(BYTES);

    if (source == NULL || target == NULL) {
        return 1;
    }
    memset(source, 7, BYTES);
    memset(target, 0, BYTES);
    nixl_capi_agent_t prefill = make_agent("prefill", source);
    nixl_capi_agent_t decode = make_agent("decode", target);
    introduce(prefill, decode);
    introduce(decode, prefill);
    read_block(decode, target, source);
    print_notification(prefill);
    for (size_t i = 0; i < BYTES; i++) {
        if (target[i] != (i / BLOCK_BYTES == 3 ? 7 : 0)) {
            fprintf(stderr, "byte %zu is wrong\n", i);
            return 1;
        }
    }
    CHECK(destroy_agent(decode));
    CHECK(destroy_agent(prefill));
    free(source);
    free(target);
    return 0;
}
