/*
 * A region of a peer is used only after its owner has confirmed it.
 *
 * Metadata proves nothing: anybody can write another address, another name or
 * another file into a good blob.  The checks of link_open.c prove which
 * process is at the other end of a link, and that process is asked.  A region
 * that comes by metadata over SHM is UNCONFIRMED (region.h): lists can be
 * prepared on it, but no byte is read or written.  As soon as metadata is
 * loaded the owner is asked over the link for all regions that are
 * unconfirmed, VNXI_LINK_ROWS_MAX at a time: memory type, address, length,
 * device, and how it is shared, since that says which memory is behind the
 * address.  The next question is sent when the answer has come, so a large
 * blob holds up neither hub, nor the notifications between the two.  The name
 * is checked by the owner too: it is in HELLO.
 *
 * The owner looks each row up in its registry, which is what it has *now*.  An
 * answer therefore carries the epoch of the registry, and so does a REVOKE,
 * which may have been sent between the look and the answer:
 *   - a USABLE region was registered at the epoch `proved`.  A REVOKE of that
 *     epoch or an earlier one is about an earlier registration.
 *   - a later REVOKE revokes it, unless its metadata says that it was
 *     registered again since.  Metadata may lie, so the region becomes
 *     UNCONFIRMED, and the owner is asked once more.
 *   - while it is UNCONFIRMED `proved` is the epoch that the answer must
 * reach. Metadata that is loaded while a question is open may describe a later
 * state than the answer.  Then nothing is refused by that answer, and all that
 * is still unconfirmed is asked again.
 *
 * An answer that does not fit the question, or whose epoch is before one that
 * the owner has told already, ends the link and with it the peer.
 *
 * Transfers on regions that are unconfirmed wait: xfer_wait.c.
 */
#ifndef VNXI_NATIVE_CONFIRM_H
#define VNXI_NATIVE_CONFIRM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/native/shm/link.h"
#include "engine/parts/region.h"

typedef struct vnxi_native_peer vnxi_native_peer_t;

/* The questions to a peer; protected by its lock.  All zeros: none. */
typedef struct vnxi_confirm {
    vnxi_region_table_t *table; /* retained: whose regions are being asked */
    size_t next;                /* the place in it to go on from */
    vnxi_region_t **asked;      /* owned array: the open question's rows, which
                                   `table` holds */
    size_t asked_count;
    bool is_open;   /* a question was sent and not answered */
    bool again;     /* begin anew with the peer's table after the answer */
    uint64_t token; /* of the last question */
    uint64_t heard; /* the latest epoch that the owner has told */
    uint64_t least; /* what the open question's answer must reach */
} vnxi_confirm_t;

void vnxi_confirm_fini(vnxi_confirm_t *confirm);

/* Its table is another: ask for what is unconfirmed in it.  Any thread. */
void vnxi_confirm_ask(vnxi_native_peer_t *peer);

/* The owner has revoked this region of the peer's table (NULL: it is not
 * there).  The caller holds the peer's lock, and calls vnxi_confirm_ask()
 * after it where this returns true. */
bool vnxi_confirm_revoked(vnxi_native_peer_t *peer, vnxi_region_t *region,
                          uint64_t epoch);

/* The hub's events `confirm` and `confirmed`; the context is the engine. */
uint64_t vnxi_confirm_on_question(void *engine, const vnxi_link_row_t *rows,
                                  size_t count, bool *refused_p);
bool vnxi_confirm_on_answer(void *engine, vnxi_link_t *link,
                            const vnxi_link_answer_t *answer);

#endif
