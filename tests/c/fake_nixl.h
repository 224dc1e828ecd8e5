/* Control of the fake NIXL library, and its observations. */
#ifndef FAKE_NIXL_H
#define FAKE_NIXL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fake_nixl {
    /* Said by the test. Numbers that calls are to fail with; 0: they do not */
    atomic_int fail_load, fail_create, fail_post, fail_status, fail_notif;
    atomic_int fail_estimate, fail_prep, fail_make;
    atomic_int fail_once; /* the next post or look alone fails, with this */
    atomic_int polls;  /* how often a post is looked at until it has ended */
    atomic_bool hangs; /* posts do not end */
    atomic_bool lands; /* posts end when they are looked at */
    atomic_bool drops_peers; /* connections have failed */
    uint64_t key;            /* that is published with regions */
    char refuses[32];        /* a backend that takes no registration */

    /* Seen by the library. */
    atomic_int handles;         /* that live */
    atomic_int left_registered; /* when agents were destroyed */
    atomic_int released_active; /* requests that had not ended */
    atomic_int loads;           /* of metadata */
    atomic_int looks;           /* for notifications */
    size_t pieces;              /* of the last transfer made of pieces */
    atomic_int prepared;        /* lists */
    atomic_int indexed;         /* transfers made by index */
    size_t params_given;        /* to the last backend made */
    char tried[32];             /* the backend of the last transfer */
    bool progress_thread;       /* of the last agent made */
    uint64_t progress_delay_us;
} fake_nixl_t;

#endif
