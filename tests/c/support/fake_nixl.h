/* What tests tell the fake NIXL library to do, and what it has seen. */
#ifndef FAKE_NIXL_H
#define FAKE_NIXL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fake_nixl {
    /* Written by tests.  The calls return these numbers; 0: they succeed. */
    atomic_int fail_load, fail_create, fail_post, fail_status, fail_notif;
    atomic_int fail_estimate, fail_prep, fail_make;
    atomic_int fail_once;    /* the next post or status call returns it */
    atomic_int polls;        /* status calls until a post ends */
    atomic_bool hangs;       /* posts do not end */
    atomic_bool lands;       /* posts end at the next status call */
    atomic_uintptr_t lander; /* posts do not end in calls of other threads than
                                this one (pthread_self()); 0: in any */
    atomic_bool drops_peers; /* connections have failed */
    atomic_bool blocks;      /* releases of requests do not return */
    atomic_bool holds;       /* hot calls wait, as for the agent's lock */
    uint64_t key;            /* published with regions */
    char refuses[32];        /* this backend refuses registrations */

    /* Written by the library. */
    atomic_int handles;         /* handles not yet released */
    atomic_int left_registered; /* regions when agents were destroyed */
    atomic_int released_active; /* requests released while in flight */
    atomic_int used_released;   /* estimates for released requests */
    atomic_int loads;           /* loads of metadata */
    atomic_int looks;           /* fetches of notifications */
    atomic_int waiting;         /* hot calls that wait now */
    atomic_int gave_up;         /* hot calls that waited for too long */
    atomic_uintptr_t poster;    /* the thread of the last post */
    size_t pieces;              /* of the last transfer made of pieces */
    atomic_int prepared;        /* prepared lists */
    atomic_int indexed;         /* transfers made by index */
    size_t params_given;        /* for the last backend created */
    char tried[32];             /* the backend of the last transfer */
    bool progress_thread;       /* of the last agent created */
    uint64_t progress_delay_us;
} fake_nixl_t;

#endif
