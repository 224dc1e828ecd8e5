#include "core/choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mutex.h"
#include "base/words.h"

#define WORDS_MAX 32 /* backends compared with an unknown one */

#define AUTO "auto"

/* -- Life ----------------------------------------------------------------- */

static vnx_status_t
add_candidate(vnxi_choice_t *choice, const vnxi_engine_ops_t *ops,
              const vnxi_engine_config_t *config, vnx_error_t *error)
{
    vnxi_candidate_t *candidate = &choice->candidates[choice->count];
    vnx_status_t status = ops->create(config, &candidate->engine, error);
    if (status == VNX_OK) {
        candidate->ops = ops;
        choice->count++;
    }
    return status;
}

static vnx_status_t
add_all(vnxi_choice_t *choice, const vnxi_engine_config_t *config,
        vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    for (size_t i = 0; status == VNX_OK && i < VNXI_ENGINES; i++) {
        status = add_candidate(choice, vnxi_engines[i], config, error);
    }
    return status;
}

static vnx_status_t
copy_wanted(vnxi_choice_t *choice, const char *const *backends,
            vnx_error_t *error)
{
    size_t count = 0;
    while (backends != NULL && backends[count] != NULL) {
        count++;
    }
    choice->wanted = calloc(count + 1, sizeof *choice->wanted);
    for (size_t i = 0; choice->wanted != NULL && i < count; i++) {
        choice->wanted[i] = strdup(backends[i]);
        if (choice->wanted[i] == NULL) {
            return vnxi_error_no_memory(error, "vnx_agent_create", count);
        }
    }
    return choice->wanted != NULL
               ? VNX_OK
               : vnxi_error_no_memory(error, "vnx_agent_create", count);
}

/* The engine of that name alone. */
static vnx_status_t
add_named(vnxi_choice_t *choice, const char *name,
          const vnxi_engine_config_t *config, vnx_error_t *error)
{
    const char *words[1 + VNXI_ENGINES] = {AUTO};

    for (size_t i = 0; i < VNXI_ENGINES; i++) {
        words[1 + i] = vnxi_engines[i]->name;
        if (strcmp(name, words[1 + i]) == 0) {
            return add_candidate(choice, vnxi_engines[i], config, error);
        }
    }
    return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "vnx_agent_create",
                          "this build does not have the engine '%.64s': %s",
                          name, vnxi_words(name, words, 1 + VNXI_ENGINES));
}

vnx_status_t
vnxi_choice_init(vnxi_choice_t *choice, const char *name,
                 const char *const *backends,
                 const vnxi_engine_config_t *config, vnx_error_t *error)
{
    *choice = (vnxi_choice_t){.count = 0};
    vnxi_mutex_init(&choice->lock, VNXI_RANK_CHOICE);
    vnx_status_t status = copy_wanted(choice, backends, error);
    if (status == VNX_OK) {
        status = name == NULL || strcmp(name, AUTO) == 0
                     ? add_all(choice, config, error)
                     : add_named(choice, name, config, error);
    }
    if (status != VNX_OK) {
        vnxi_choice_stop(choice);
        vnxi_choice_fini(choice);
    }
    return status;
}

void
vnxi_candidate_stop_lock_held(vnxi_candidate_t *candidate)
{
    if (!atomic_exchange(&candidate->stopped, true)) {
        candidate->ops->stop(candidate->engine);
    }
}

void
vnxi_choice_stop(vnxi_choice_t *choice)
{
    vnxi_mutex_lock(&choice->lock);
    for (size_t i = 0; i < choice->count; i++) {
        vnxi_candidate_stop_lock_held(&choice->candidates[i]);
    }
    vnxi_mutex_unlock(&choice->lock);
}

void
vnxi_choice_fini(vnxi_choice_t *choice)
{
    for (size_t i = 0; i < choice->count; i++) {
        choice->candidates[i].ops->destroy(choice->candidates[i].engine);
    }
    for (size_t i = 0; choice->wanted != NULL && choice->wanted[i] != NULL;
         i++) {
        free(choice->wanted[i]);
    }
    free(choice->wanted);
    vnxi_mutex_destroy(&choice->lock);
    *choice = (vnxi_choice_t){.count = 0};
}

/* -- Backends of the candidates ------------------------------------------- */

bool
vnxi_candidate_has(const vnxi_candidate_t *candidate, const char *backend)
{
    const char *name;
    for (size_t i = 0;
         (name = candidate->ops->plugin(candidate->engine, i)) != NULL; i++) {
        if (strcmp(name, backend) == 0) {
            return true;
        }
    }
    return false;
}

static bool
any_has(const vnxi_choice_t *choice, const char *backend)
{
    bool has = false;
    for (size_t i = 0; !has && i < choice->count; i++) {
        has = vnxi_candidate_has(&choice->candidates[i], backend);
    }
    return has;
}

static bool
has_created(const vnxi_candidate_t *candidate, const char *backend)
{
    vnx_param_t param;
    return candidate->ops->param(candidate->engine, backend, true, 0, &param,
                                 NULL) == VNX_OK;
}

/* The first backend at or after `*at_p` that was created; NULL: none. */
static const char *
next_created(const vnxi_candidate_t *candidate, size_t *at_p)
{
    const char *name;
    while ((name = candidate->ops->plugin(candidate->engine, *at_p)) != NULL) {
        ++*at_p;
        if (has_created(candidate, name)) {
            break;
        }
    }
    return name;
}

/* Return whether a candidate can take the place of `from`, which may be NULL.
 */
static bool
can_replace(const vnxi_candidate_t *from, const vnxi_candidate_t *candidate)
{
    const char *name;
    size_t at = 0;

    if (from == NULL || from == candidate) {
        return true;
    }
    if (atomic_load(&candidate->stopped)) {
        return false;
    }
    while ((name = next_created(from, &at)) != NULL) {
        if (!vnxi_candidate_has(candidate, name)) {
            return false;
        }
    }
    return true;
}

/* Return whether a candidate for the first backend has all that the config
 * announces.  Names that no candidate knows do not count: creating them fails
 * with an error that names them. */
static bool
has_wanted(const vnxi_choice_t *choice, const vnxi_candidate_t *candidate)
{
    for (char *const *wanted = choice->wanted;
         wanted != NULL && *wanted != NULL; wanted++) {
        if (!vnxi_candidate_has(candidate, *wanted) &&
            any_has(choice, *wanted)) {
            return false;
        }
    }
    return true;
}

const char *
vnxi_choice_plugin(const vnxi_choice_t *choice, const vnxi_candidate_t *from,
                   size_t i)
{
    const vnxi_candidate_t *listed[VNXI_ENGINES];
    size_t count = 0;

    for (size_t k = 0; k < choice->count; k++) {
        const vnxi_candidate_t *candidate = &choice->candidates[k];
        const char *name;
        if (!can_replace(from, candidate)) {
            continue;
        }
        for (size_t j = 0;
             (name = candidate->ops->plugin(candidate->engine, j)) != NULL;
             j++) {
            bool known = false;
            for (size_t before = 0; before < count; before++) {
                known |= vnxi_candidate_has(listed[before], name);
            }
            if (!known && i-- == 0) {
                return name;
            }
        }
        listed[count++] = candidate;
    }
    return NULL;
}

/* "native has UCX, SHM" or "nixl: the library was not found ..." */
static void
write_reason(const vnxi_candidate_t *candidate, FILE *out)
{
    vnx_error_t error;
    const char *name;

    if (candidate->ops->probe(candidate->engine, &error) != VNX_OK) {
        fprintf(out, "%s does not work here: %s", candidate->ops->name,
                error.cause);
        return;
    }
    fprintf(out, "%s has", candidate->ops->name);
    for (size_t i = 0;
         (name = candidate->ops->plugin(candidate->engine, i)) != NULL; i++) {
        fprintf(out, "%s %s", i > 0 ? "," : "", name);
    }
}

/* Return whether the backend is missing only together with others, which the
 * config announces or `from` has. */
static bool
needs_others(const vnxi_choice_t *choice, const vnxi_candidate_t *from,
             const char *backend)
{
    size_t at = 0;
    bool others = from != NULL && next_created(from, &at) != NULL;

    for (size_t i = 0; choice->wanted != NULL && choice->wanted[i] != NULL;
         i++) {
        others |= strcmp(choice->wanted[i], backend) != 0;
    }
    return others && any_has(choice, backend);
}

/* The name of a backend that was probably meant; NULL: none, or the name is
 * right, and the engine that has it lacks another. */
static const char *
meant_backend(const vnxi_choice_t *choice, const char *backend)
{
    const char *words[WORDS_MAX];
    size_t count = 0;

    while (count < WORDS_MAX &&
           (words[count] = vnxi_choice_plugin(choice, NULL, count)) != NULL) {
        count++;
    }
    const char *meant = vnxi_word_meant(backend, words, count);
    return meant != NULL && strcmp(meant, backend) != 0 ? meant : NULL;
}

static vnx_status_t
error_none(const vnxi_choice_t *choice, const vnxi_candidate_t *from,
           const char *backend, const char *operation, vnx_error_t *error)
{
    char reasons[VNX_ERROR_CAUSE_MAX] = "";
    FILE *out = fmemopen(reasons, sizeof reasons, "w");
    if (out == NULL) {
        return vnxi_error_no_memory(error, operation, sizeof reasons);
    }
    for (size_t i = 0; i < choice->count; i++) {
        fputs(i > 0 ? "; " : "", out);
        write_reason(&choice->candidates[i], out);
    }
    fclose(out);
    reasons[sizeof reasons - 1] = '\0';
    vnxi_error_set(error, VNX_ERR_NOT_FOUND, operation,
                   "no engine has the backend '%.64s'", backend);
    if (needs_others(choice, from, backend)) {
        vnxi_error_add(error, " and all others that were requested");
    }
    const char *meant = meant_backend(choice, backend);
    if (meant != NULL) {
        vnxi_error_add(error, " (did you mean '%s'?)", meant);
    }
    vnxi_error_add(error, ": %s", reasons);
    return VNX_ERR_NOT_FOUND;
}

/* The candidate that has the backend and can take the place of `from`; NULL:
 * none. */
static vnxi_candidate_t *
find(vnxi_choice_t *choice, vnxi_candidate_t *from, const char *backend)
{
    if (from != NULL && vnxi_candidate_has(from, backend)) {
        return from;
    }
    for (size_t i = 0; i < choice->count; i++) {
        vnxi_candidate_t *candidate = &choice->candidates[i];
        if (vnxi_candidate_has(candidate, backend) &&
            can_replace(from, candidate)) {
            return candidate;
        }
    }
    return NULL;
}

vnx_status_t
vnxi_choice_find(vnxi_choice_t *choice, vnxi_candidate_t *from,
                 const char *backend, const char *operation,
                 vnxi_candidate_t **out_p, vnx_error_t *error)
{
    vnxi_candidate_t *found = find(choice, from, backend);
    if (found == NULL) {
        return error_none(choice, from, backend, operation, error);
    }
    *out_p = found;
    return VNX_OK;
}

/* -- Choosing ------------------------------------------------------------- */

void
vnxi_choice_explain_lock_held(vnxi_choice_t *choice,
                              const vnxi_candidate_t *chosen,
                              const char *backend)
{
    if (choice->count == 1) {
        snprintf(choice->why, sizeof choice->why, "it was requested");
    } else if (chosen == &choice->candidates[0]) {
        snprintf(choice->why, sizeof choice->why,
                 "auto: it has every requested backend (%.64s)", backend);
    } else {
        snprintf(choice->why, sizeof choice->why,
                 "auto: the engine %s does not have every requested backend "
                 "(%.64s)",
                 choice->candidates[0].ops->name, backend);
    }
}

static bool
works(const vnxi_candidate_t *candidate)
{
    return candidate->ops->probe(candidate->engine, NULL) == VNX_OK;
}

/* The candidate for the first backend; NULL: none. */
static vnxi_candidate_t *
find_first(vnxi_choice_t *choice, const char *backend)
{
    for (size_t i = 0; i < choice->count; i++) {
        vnxi_candidate_t *candidate = &choice->candidates[i];
        if (vnxi_candidate_has(candidate, backend) &&
            has_wanted(choice, candidate) && works(candidate)) {
            return candidate;
        }
    }
    return NULL;
}

vnx_status_t
vnxi_choice_make_lock_held(vnxi_choice_t *choice, vnxi_candidate_t *from,
                           const char *backend, vnxi_candidate_t **out_p,
                           vnx_error_t *error)
{
    vnxi_candidate_t *found;

    if (choice->count == 1) {
        /* The engine reports itself which backend it lacks. */
        *out_p = &choice->candidates[0];
        return (*out_p)->ops->probe((*out_p)->engine, error);
    }
    found = from != NULL ? find(choice, from, backend)
                         : find_first(choice, backend);
    if (found == NULL) {
        return error_none(choice, from, backend, "vnx_agent_create_backend",
                          error);
    }
    *out_p = found;
    return VNX_OK;
}

/* -- Changing the choice --------------------------------------------------
 */

#define PARAMS_MAX 64 /* of a backend; NIXL's have a dozen */

/* Create a backend of `from` in another candidate, with its parameters. */
static vnx_status_t
copy_backend(const vnxi_candidate_t *from, const vnxi_candidate_t *to,
             const char *backend, vnx_error_t *error)
{
    vnx_param_t params[PARAMS_MAX];
    size_t count = 0;

    while (count < PARAMS_MAX) {
        vnx_status_t status = from->ops->param(from->engine, backend, true,
                                               count, &params[count], error);
        if (status != VNX_OK) {
            return status;
        }
        if (params[count].key == NULL) {
            return to->ops->backend_create(to->engine, backend, params, count,
                                           error);
        }
        count++;
    }
    return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED,
                          "vnx_agent_create_backend",
                          "the backend '%.64s' has more than %d parameters",
                          backend, PARAMS_MAX - 1);
}

vnx_status_t
vnxi_choice_copy_lock_held(const vnxi_candidate_t *from,
                           const vnxi_candidate_t *to, vnx_error_t *error)
{
    vnx_status_t status = to->ops->probe(to->engine, error);
    const char *name;
    size_t at = 0;

    while (status == VNX_OK && (name = next_created(from, &at)) != NULL) {
        if (!has_created(to, name)) {
            status = copy_backend(from, to, name, error);
        }
    }
    return status;
}

vnx_status_t
vnxi_choice_too_late(vnxi_choice_t *choice, vnxi_candidate_t *from,
                     const char *backend, vnx_error_t *error)
{
    static const char operation[] = "vnx_agent_create_backend";
    char all[VNX_ERROR_CAUSE_MAX / 2] = "";
    const char *name;
    size_t at = 0;

    if (find(choice, from, backend) == NULL) {
        return error_none(choice, from, backend, operation, error);
    }
    while ((name = next_created(from, &at)) != NULL) {
        vnxi_text_add(all, sizeof all, "\"%.32s\", ", name);
    }
    vnxi_text_add(all, sizeof all, "\"%.32s\"", backend);
    return vnxi_error_set(
        error, VNX_ERR_NOT_FOUND, operation,
        "the %s engine has no backend '%.64s', and after memory was "
        "registered, metadata read or a peer loaded the engine cannot change. "
        "Create the agent with all its backends: "
        "nixl_agent_config(backends=[%s])",
        from->ops->name, backend, all);
}
