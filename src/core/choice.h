/*
 * The choice of an agent's engine.
 *
 * Before its first backend is created, an agent has candidates: the requested
 * engine or, with "auto", all engines of this build, best first.  Creating the
 * first backend makes the choice.  `auto` takes the first candidate that works
 * on this machine and has every requested backend.  If creating the backend
 * fails, nothing is chosen, and the next call may choose another engine.
 *
 * `lock` is held while an engine is chosen and its first backend is created.
 * No hot call takes it.
 */
#ifndef VNXI_CORE_CHOICE_H
#define VNXI_CORE_CHOICE_H

#include "base/mutex.h"
#include "engine/engine.h"

#define VNXI_CHOICE_WHY 160

typedef struct vnxi_candidate {
    const vnxi_engine_ops_t *ops;
    vnxi_engine_t *engine;
} vnxi_candidate_t;

typedef struct vnxi_choice {
    vnxi_mutex_t lock;
    vnxi_candidate_t candidates[VNXI_ENGINES]; /* constant */
    size_t count;
    char **wanted;             /* backends that the config announces; owned,
                                  NULL-terminated; may be NULL */
    char why[VNXI_CHOICE_WHY]; /* protected by lock until a backend is
                                  created */
} vnxi_choice_t;

/* Create the candidates.  `name`: NULL, "auto" or an engine's name
 * (VNX_ERR_NOT_SUPPORTED if this build lacks it).  `backends`:
 * NULL-terminated, copied, may be NULL. */
vnx_status_t vnxi_choice_init(vnxi_choice_t *choice, const char *name,
                              const char *const *backends,
                              const vnxi_engine_config_t *config,
                              vnx_error_t *error);

/* Stop all candidates, including the chosen one. */
void vnxi_choice_stop(vnxi_choice_t *choice);
void vnxi_choice_fini(vnxi_choice_t *choice); /* also accepts a zeroed one */

/* Choose the candidate for the first backend and write the reason to `why`.
 * VNX_ERR_NOT_FOUND: no candidate has the backend; the error lists the
 * backends of each one, or the reason why it does not work here. */
vnx_status_t vnxi_choice_make_lock_held(vnxi_choice_t *choice,
                                        const char *backend,
                                        const vnxi_candidate_t **out_p,
                                        vnx_error_t *error);

/* The i-th backend of all candidates, without duplicates; NULL past the last.
 */
const char *vnxi_choice_plugin(const vnxi_choice_t *choice, size_t i);

/* The first candidate that has the backend.  Errors: VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_choice_find(const vnxi_choice_t *choice, const char *backend,
                              const char *operation,
                              const vnxi_candidate_t **out_p,
                              vnx_error_t *error);

#endif
