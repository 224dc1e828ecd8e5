/*
 * Design notes.  The generic cell rate algorithm: for each address, only the
 * time at which its bucket will be full again is kept.  A hash with a secret
 * random seed chooses a set of four slots.  If the address has none of them,
 * it replaces the one whose bucket has been full for the longest time.
 */
#include "net/rate.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/bytes.h"

#define NS_PER_S UINT64_C(1000000000)
#define BURST_NS (2 * NS_PER_S)
#define WAYS 4
#define SETS (VNXI_RATE_ADDRESSES / WAYS)

typedef struct source {
    unsigned char bytes[16];
    uint64_t full_at;
} source_t;

struct vnxi_rate {
    uint64_t interval; /* ns */
    unsigned char seed[8];
    source_t sets[SETS][WAYS];
};

vnxi_rate_t *
vnxi_rate_create(uint32_t per_second)
{
    vnxi_rate_t *rate = calloc(1, sizeof *rate);
    if (rate != NULL) {
        uint64_t interval = NS_PER_S / per_second;
        rate->interval = interval > 0 ? interval : 1;
        /* Without a seed the sets can be predicted; nothing else is lost. */
        ssize_t got = getrandom(rate->seed, sizeof rate->seed, GRND_NONBLOCK);
        (void)got;
    }
    return rate;
}

void
vnxi_rate_free(vnxi_rate_t *rate)
{
    free(rate);
}

/* Write the source to count: an IPv4 address in its IPv4-mapped form, or the
 * network of an IPv6 address.  False: the address is neither. */
static bool
source_of(const struct sockaddr_storage *addr, unsigned char bytes[16])
{
    const struct sockaddr_in *v4 = (const void *)addr;
    const struct sockaddr_in6 *v6 = (const void *)addr;

    memset(bytes, 0, 16);
    if (addr->ss_family == AF_INET) {
        bytes[10] = bytes[11] = 0xff;
        memcpy(bytes + 12, &v4->sin_addr, 4);
    } else if (addr->ss_family == AF_INET6) {
        bool mapped = IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr);
        memcpy(bytes, &v6->sin6_addr, mapped ? 16 : 8);
    } else {
        return false;
    }
    return true;
}

static source_t *
find(vnxi_rate_t *rate, const unsigned char bytes[16])
{
    unsigned char seeded[24];

    memcpy(seeded, rate->seed, 8);
    memcpy(seeded + 8, bytes, 16);
    source_t *set = rate->sets[vnxi_hash(seeded, sizeof seeded) % SETS];
    source_t *oldest = &set[0];
    for (int i = 0; i < WAYS; i++) {
        if (memcmp(set[i].bytes, bytes, 16) == 0) {
            return &set[i];
        }
        if (set[i].full_at < oldest->full_at) {
            oldest = &set[i];
        }
    }
    memcpy(oldest->bytes, bytes, 16);
    oldest->full_at = 0;
    return oldest;
}

bool
vnxi_rate_take(vnxi_rate_t *rate, const struct sockaddr_storage *addr,
               uint64_t now)
{
    unsigned char bytes[16];

    if (!source_of(addr, bytes)) {
        return true;
    }
    source_t *source = find(rate, bytes);
    uint64_t full_at = source->full_at > now ? source->full_at : now;
    if (full_at - now + rate->interval > BURST_NS) {
        return false;
    }
    source->full_at = full_at + rate->interval;
    return true;
}
