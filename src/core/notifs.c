#include "core/notifs.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

void
vnxi_notifs_init(vnxi_notifs_t *notifs, uint64_t bytes_max)
{
    *notifs = (vnxi_notifs_t){.bytes_max = bytes_max};
    vnxi_mutex_init(&notifs->lock, VNXI_RANK_NOTIFS);
}

void
vnxi_notifs_fini(vnxi_notifs_t *notifs)
{
    vnx_notif_free(notifs->first);
    vnxi_mutex_destroy(&notifs->lock);
}

static uint64_t
notif_cost(const vnx_notif_t *notif)
{
    return sizeof *notif + notif->sender_len + notif->message_len;
}

/* One allocation holds the record, the sender's name and the message. */
static vnx_notif_t *
notif_create(const void *sender, size_t sender_len, const void *message,
             size_t message_len)
{
    size_t size;

    if (__builtin_add_overflow(sizeof(vnx_notif_t) + sender_len, message_len,
                               &size)) {
        return NULL;
    }
    vnx_notif_t *notif = malloc(size);
    if (notif == NULL) {
        return NULL;
    }
    char *bytes = (char *)(notif + 1);
    memcpy(bytes, sender, sender_len);
    if (message_len > 0) {
        memcpy(bytes + sender_len, message, message_len);
    }
    *notif = (vnx_notif_t){.arrived_ns = vnxi_clock_ns(),
                           .sender = bytes,
                           .sender_len = sender_len,
                           .message = bytes + sender_len,
                           .message_len = message_len};
    return notif;
}

static void
append_lock_held(vnxi_notifs_t *notifs, vnx_notif_t *notif)
{
    if (notifs->last != NULL) {
        notifs->last->next = notif;
    } else {
        notifs->first = notif;
    }
    notifs->last = notif;
    notifs->bytes += notif_cost(notif);
    atomic_fetch_add_explicit(&notifs->count, 1, memory_order_release);
}

/* Unlink the oldest notifications until the size is within the limit.  The
 * newest one always stays. */
static vnx_notif_t *
take_overflow_lock_held(vnxi_notifs_t *notifs)
{
    vnx_notif_t *dropped = NULL;
    while (notifs->bytes > notifs->bytes_max &&
           notifs->first != notifs->last) {
        vnx_notif_t *oldest = notifs->first;
        notifs->first = oldest->next;
        notifs->bytes -= notif_cost(oldest);
        notifs->dropped++;
        atomic_fetch_sub_explicit(&notifs->count, 1, memory_order_relaxed);
        oldest->next = dropped;
        dropped = oldest;
    }
    return dropped;
}

void
vnxi_notifs_push(vnxi_notifs_t *notifs, const void *sender, size_t sender_len,
                 const void *message, size_t message_len)
{
    vnx_notif_t *notif =
        notif_create(sender, sender_len, message, message_len);
    vnx_notif_t *overflow = NULL;

    vnxi_mutex_lock(&notifs->lock);
    uint64_t dropped_before = notifs->dropped;
    notifs->received++;
    if (notif != NULL) {
        append_lock_held(notifs, notif);
        overflow = take_overflow_lock_held(notifs);
    } else {
        notifs->dropped++;
    }
    bool first_drop = dropped_before == 0 && notifs->dropped > 0;
    vnxi_mutex_unlock(&notifs->lock);

    vnx_notif_free(overflow);
    if (first_drop) {
        vnxi_log(VNX_LOG_WARNING, notifs->agent,
                 "pending notifications exceed %" PRIu64
                 " bytes: the oldest are dropped (counted in the "
                 "agent's statistics); take notifications more often",
                 notifs->bytes_max);
    }
}

static void
count_waits(vnxi_notifs_t *notifs, const vnx_notif_t *chain)
{
    uint64_t now = vnxi_clock_ns(), sum = 0;

    for (; chain != NULL; chain = chain->next) {
        uint64_t ns = now - chain->arrived_ns;
        vnxi_count(&notifs->waits[vnxi_histogram_place(ns)], 1);
        sum += ns;
    }
    vnxi_count(&notifs->wait_ns, sum);
}

vnx_notif_t *
vnxi_notifs_take(vnxi_notifs_t *notifs)
{
    vnxi_mutex_lock(&notifs->lock);
    vnx_notif_t *chain = notifs->first;
    notifs->first = notifs->last = NULL;
    notifs->bytes = 0;
    atomic_store_explicit(&notifs->count, 0, memory_order_relaxed);
    vnxi_mutex_unlock(&notifs->lock);
    if (chain != NULL) {
        count_waits(notifs, chain);
    }
    return chain;
}

void
vnx_notif_free(vnx_notif_t *chain)
{
    while (chain != NULL) {
        vnx_notif_t *next = chain->next;
        free(chain);
        chain = next;
    }
}
