/*
 * A region of a peer is used only after its owner has confirmed it.
 *
 * Metadata proves nothing: anybody can put another address, another name or
 * another file into a good blob.  The checks of link_open.c prove which
 * process is at the other end of a link, and that process is asked.  A region
 * of a peer with a link, of any kind of memory, is UNCONFIRMED (region.h):
 * lists can be prepared on it, but its bytes are neither read nor written.  As
 * soon as metadata is loaded, the owner is asked over the link about all
 * unconfirmed regions, VNXI_LINK_ROWS_MAX at a time.  A question gives memory
 * type, address, length, device, and how the region is shared, because that
 * determines which memory is behind the address.  The next question is sent
 * after the answer, so a large blob delays neither the hub nor notifications
 * between the two agents.  The owner also checks its name, which is in HELLO.
 *
 * The owner looks up each row in its registry, which holds its regions *now*.
 * Therefore an answer carries the epoch of the registry.  A REVOKE carries it
 * too, because it may be sent between the lookup and the answer:
 *   - A USABLE region was registered at epoch `proved`.  A REVOKE of that
 *     epoch or an earlier one refers to an earlier registration.
 *   - A later REVOKE revokes it, unless its metadata says that it was
 *     registered again since.  Metadata may lie, so the region becomes
 *     UNCONFIRMED, and the owner is asked once more.
 *   - While the region is UNCONFIRMED, `proved` is the epoch that the answer
 *     must reach.
 *
 * Metadata loaded while a question is open may describe a later state than the
 * answer.  In that case the answer refuses nothing, and all regions that are
 * still unconfirmed are asked for again.
 *
 * An answer that does not fit the question, or whose epoch is lower than one
 * that the owner sent before, ends the link and with it the peer.
 *
 * Transfers on unconfirmed regions wait: native/xfer_run.c.
 *
 * An owner that deregisters memory sends SETTLE after REVOKE, and waits for
 * SETTLED: then no copy of this process touches the memory any more.  If some
 * are running, a thread of its own waits for their end, because the hub's
 * thread must go on.
 */
#ifndef VNXI_NATIVE_SHM_CONFIRM_H
#define VNXI_NATIVE_SHM_CONFIRM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/native/shm/link.h"
#include "engine/parts/region.h"

typedef struct vnxi_shm_conn vnxi_shm_conn_t;

/* The questions to a peer; protected by the conn's lock.  All zeros: none. */
typedef struct vnxi_confirm {
    vnxi_region_table_t *table; /* retained: the table being asked about */
    size_t next;                /* index in `table` at which to go on */
    vnxi_region_t **asked;      /* owned array: the rows of the open
                                   question; `table` holds them */
    size_t asked_count;
    bool is_open;   /* a question was sent and has not been answered */
    bool again;     /* after the answer, start again with the conn's current
                       table */
    uint64_t token; /* of the last question */
    uint64_t heard; /* the highest epoch that the owner has sent */
    uint64_t least; /* the lowest epoch allowed in the open question's
                       answer */
    uint64_t settle_token; /* of the owner's last SETTLE */
    bool is_settling;      /* a thread will answer it */
} vnxi_confirm_t;

void vnxi_confirm_fini(vnxi_confirm_t *confirm);

/* The conn has a new table: ask for its unconfirmed regions.  Any thread. */
void vnxi_confirm_ask(vnxi_shm_conn_t *conn);

/* Handlers of the hub's events `confirm`, `confirmed`, `revoked` and `settle`;
 * the context is the port. */
uint64_t vnxi_confirm_on_question(void *port, const vnxi_link_row_t *rows,
                                  size_t count, bool *refused_p);
bool vnxi_confirm_on_answer(void *port, vnxi_link_t *link,
                            const vnxi_link_answer_t *answer);
void vnxi_confirm_on_revoked(void *port, vnxi_link_t *link, uint64_t epoch,
                             vnx_mem_t mem, const vnx_desc_t *desc);
void vnxi_confirm_on_settle(void *port, vnxi_link_t *link, uint64_t token);

#endif
