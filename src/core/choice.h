/*
 * The choice of an agent's engine.
 *
 * An agent has candidates: the requested engine or, with "auto", all engines
 * of this build, best first.  Creating the first backend makes the choice.
 * `auto` takes the first candidate that works on this machine and has every
 * requested backend.  If creating the backend fails, nothing is chosen, and
 * the next call may choose another engine.
 *
 * Until the agent is bound to its engine (core/agent.h), a backend that the
 * engine lacks changes the choice: another candidate gets all backends of the
 * present one and the new one, and the present one is retired.  If that fails,
 * nothing changes.
 *
 * `lock` is held while the choice is made or changed, and by every call that
 * uses the engine of an agent that is not bound.  No hot call takes it.
 */
#ifndef VNXI_CORE_CHOICE_H
#define VNXI_CORE_CHOICE_H

#include "base/mutex.h"
#include "engine/engine.h"

#define VNXI_CHOICE_WHY 160

typedef struct vnxi_candidate {
    const vnxi_engine_ops_t *ops; /* constant */
    vnxi_engine_t *engine;        /* constant */
    atomic_bool stopped;
} vnxi_candidate_t;

typedef struct vnxi_choice {
    vnxi_mutex_t lock;
    vnxi_candidate_t candidates[VNXI_ENGINES];
    size_t count;              /* constant */
    char **wanted;             /* backends that the config announces; owned,
                                  NULL-terminated; may be NULL */
    char why[VNXI_CHOICE_WHY]; /* protected by lock until the agent is bound */
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

/* Below, `from` is the candidate that is chosen now; NULL: none.  Others count
 * only if they have all backends that were created there. */

/* Find the candidate that is to create the backend: `from` if it has it.
 * VNX_ERR_NOT_FOUND: no candidate has the backend; the error lists the
 * backends of each one, or the reason why it does not work here. */
vnx_status_t vnxi_choice_make_lock_held(vnxi_choice_t *choice,
                                        vnxi_candidate_t *from,
                                        const char *backend,
                                        vnxi_candidate_t **out_p,
                                        vnx_error_t *error);

/* Write to `why` why the candidate was chosen when it created the backend. */
void vnxi_choice_explain_lock_held(vnxi_choice_t *choice,
                                   const vnxi_candidate_t *chosen,
                                   const char *backend);

/* Create the backends of `from` in another candidate, except those that an
 * earlier call has created there. */
vnx_status_t vnxi_choice_copy_lock_held(const vnxi_candidate_t *from,
                                        const vnxi_candidate_t *to,
                                        vnx_error_t *error);

/* Stop a candidate, if it was not stopped before. */
void vnxi_candidate_stop_lock_held(vnxi_candidate_t *candidate);

/* The error for a backend that `from` lacks, now that the agent is bound. */
vnx_status_t vnxi_choice_too_late(vnxi_choice_t *choice,
                                  vnxi_candidate_t *from, const char *backend,
                                  vnx_error_t *error);

bool vnxi_candidate_has(const vnxi_candidate_t *candidate,
                        const char *backend);

/* The i-th backend of all candidates, without duplicates; NULL past the last.
 */
const char *vnxi_choice_plugin(const vnxi_choice_t *choice,
                               const vnxi_candidate_t *from, size_t i);

/* The first candidate that has the backend, or `from` if it does.  Errors:
 * VNX_ERR_NOT_FOUND. */
vnx_status_t vnxi_choice_find(vnxi_choice_t *choice, vnxi_candidate_t *from,
                              const char *backend, const char *operation,
                              vnxi_candidate_t **out_p, vnx_error_t *error);

#endif
