/*
 * Which engine stands behind an agent.
 *
 * Until its first backend is created an agent has candidates: the one engine
 * that was asked for, or with "auto" all that this build has, best first.
 * Creating the first backend chooses: `auto` takes the first candidate that
 * has every backend that was asked for and that works here.  Where creating
 * fails nothing is chosen, and the next call may choose otherwise.
 *
 * `lock` is held while an engine is chosen and its first backend is created;
 * no hot call needs it.
 */
#ifndef VNXI_CORE_CHOICE_H
#define VNXI_CORE_CHOICE_H

#include "base/mutex.h"
#include "engine/engine.h"

#define VNXI_CANDIDATES_MAX 2
#define VNXI_CHOICE_WHY 160

typedef struct vnxi_candidate {
    const vnxi_engine_ops_t *ops;
    vnxi_engine_t *engine;
} vnxi_candidate_t;

typedef struct vnxi_choice {
    vnxi_mutex_t lock;
    vnxi_candidate_t candidates[VNXI_CANDIDATES_MAX]; /* constant */
    size_t count;
    char **wanted;             /* what the config says will be created; owned,
                                  NULL-terminated; may be NULL */
    char why[VNXI_CHOICE_WHY]; /* lock, until a backend was created */
} vnxi_choice_t;

/* Make the candidates.  `name`: NULL or "auto", or an engine's name
 * (VNX_ERR_NOT_SUPPORTED where this build has none of it); `backends`:
 * NULL-terminated, copied, may be NULL. */
vnx_status_t vnxi_choice_init(vnxi_choice_t *choice, const char *name,
                              const char *const *backends,
                              const vnxi_engine_config_t *config,
                              vnx_error_t *error);

/* Stop all of them; what was chosen too. */
void vnxi_choice_stop(vnxi_choice_t *choice);
void vnxi_choice_fini(vnxi_choice_t *choice); /* a zeroed one too */

/* The candidate for a first backend of that name; `why` says for what reason.
 * VNX_ERR_NOT_FOUND: none has it (the error says what each has, or why it does
 * not work here). */
vnx_status_t vnxi_choice_make_lock_held(vnxi_choice_t *choice,
                                        const char *backend,
                                        const vnxi_candidate_t **out_p,
                                        vnx_error_t *error);

/* The i-th backend of all candidates, each name once; NULL past the last. */
const char *vnxi_choice_plugin(const vnxi_choice_t *choice, size_t i);

/* The first candidate that has that backend; VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_choice_find(const vnxi_choice_t *choice, const char *backend,
                              const char *operation,
                              const vnxi_candidate_t **out_p,
                              vnx_error_t *error);

#endif
