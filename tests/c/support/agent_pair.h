/* Two agents of this process, "A" and "B", each with one region; A knows B.
 * B's memory is filled, A's is zero. */
#ifndef AGENT_PAIR_H
#define AGENT_PAIR_H

#include "agent_fixture.h"

#define ROW 4096
#define ROWS 4096

typedef struct pair {
    vnx_agent_t *a, *b;
    unsigned char *at_a, *at_b;
    size_t len;
} pair_t;

static inline int
pair_setup(void **state)
{
    pair_t *pair = calloc(1, sizeof *pair);
    pair->len = (size_t)ROW * ROWS;
    pair->at_a = calloc(1, pair->len);
    pair->at_b = malloc(pair->len);
    fill(pair->at_b, pair->len, 7);
    pair->a = make_agent("A");
    pair->b = make_agent("B");
    register_at(pair->a, pair->at_a, pair->len);
    register_at(pair->b, pair->at_b, pair->len);
    load_peer(pair->a, pair->b);
    *state = pair;
    return 0;
}

static inline int
pair_teardown(void **state)
{
    pair_t *pair = *state;
    vnx_agent_release(pair->a);
    vnx_agent_release(pair->b);
    free(pair->at_a);
    free(pair->at_b);
    free(pair);
    return 0;
}

/* Close B and create another instance with the same name and memory, without
 * telling A. */
static inline void
pair_restart_b(pair_t *pair)
{
    vnx_agent_release(pair->b);
    pair->b = make_agent("B");
    register_at(pair->b, pair->at_b, pair->len);
}

/* A transfer of both whole regions, run by the copy threads.  Its lists are
 * released: the transfer holds references. */
static inline vnx_xfer_t *
pair_make_xfer(pair_t *pair, vnx_op_t op, size_t rows, const char *notif)
{
    vnx_dlist_t *local = prepare_rows(pair->a, "", pair->at_a, ROW, rows);
    vnx_dlist_t *remote = prepare_rows(pair->a, "B", pair->at_b, ROW, rows);
    vnx_xfer_t *xfer = make_xfer(pair->a, op, local, remote, rows, notif);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    return xfer;
}

#define with_pair(test) \
    cmocka_unit_test_setup_teardown(test, pair_setup, pair_teardown)

#endif
