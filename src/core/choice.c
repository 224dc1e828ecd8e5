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
vnxi_choice_stop(vnxi_choice_t *choice)
{
    vnxi_mutex_lock(&choice->lock);
    for (size_t i = 0; i < choice->count; i++) {
        choice->candidates[i].ops->stop(choice->candidates[i].engine);
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

static bool
has_backend(const vnxi_candidate_t *candidate, const char *backend)
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
has_all(const vnxi_candidate_t *candidate, const char *backend,
        char *const *wanted)
{
    bool all = has_backend(candidate, backend);
    for (; all && wanted != NULL && *wanted != NULL; wanted++) {
        all = has_backend(candidate, *wanted);
    }
    return all;
}

const char *
vnxi_choice_plugin(const vnxi_choice_t *choice, size_t i)
{
    for (size_t k = 0; k < choice->count; k++) {
        const vnxi_candidate_t *candidate = &choice->candidates[k];
        const char *name;
        for (size_t j = 0;
             (name = candidate->ops->plugin(candidate->engine, j)) != NULL;
             j++) {
            bool known = false;
            for (size_t before = 0; before < k; before++) {
                known |= has_backend(&choice->candidates[before], name);
            }
            if (!known && i-- == 0) {
                return name;
            }
        }
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

static bool
wants_others(const vnxi_choice_t *choice, const char *backend)
{
    for (size_t i = 0; choice->wanted != NULL && choice->wanted[i] != NULL;
         i++) {
        if (strcmp(choice->wanted[i], backend) != 0) {
            return true;
        }
    }
    return false;
}

/* The name of a backend that was probably meant; NULL: none, or the name is
 * right, and the engine that has it lacks another. */
static const char *
meant_backend(const vnxi_choice_t *choice, const char *backend)
{
    const char *words[WORDS_MAX];
    size_t count = 0;

    while (count < WORDS_MAX &&
           (words[count] = vnxi_choice_plugin(choice, count)) != NULL) {
        count++;
    }
    const char *meant = vnxi_word_meant(backend, words, count);
    return meant != NULL && strcmp(meant, backend) != 0 ? meant : NULL;
}

static vnx_status_t
error_none(const vnxi_choice_t *choice, const char *backend,
           const char *operation, vnx_error_t *error)
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
    if (wants_others(choice, backend)) {
        vnxi_error_add(error, " and all others that were requested");
    }
    const char *meant = meant_backend(choice, backend);
    if (meant != NULL) {
        vnxi_error_add(error, " (did you mean '%s'?)", meant);
    }
    vnxi_error_add(error, ": %s", reasons);
    return VNX_ERR_NOT_FOUND;
}

vnx_status_t
vnxi_choice_find(const vnxi_choice_t *choice, const char *backend,
                 const char *operation, const vnxi_candidate_t **out_p,
                 vnx_error_t *error)
{
    for (size_t i = 0; i < choice->count; i++) {
        if (has_backend(&choice->candidates[i], backend)) {
            *out_p = &choice->candidates[i];
            return VNX_OK;
        }
    }
    return error_none(choice, backend, operation, error);
}

/* -- Choosing ------------------------------------------------------------- */

static void
say_why(vnxi_choice_t *choice, size_t chosen, const char *backend)
{
    if (chosen == 0) {
        snprintf(choice->why, sizeof choice->why,
                 "auto: it has every requested backend (%.64s)", backend);
    } else {
        snprintf(choice->why, sizeof choice->why,
                 "auto: the engine %s does not have every requested backend "
                 "(%.64s)",
                 choice->candidates[0].ops->name, backend);
    }
}

vnx_status_t
vnxi_choice_make_lock_held(vnxi_choice_t *choice, const char *backend,
                           const vnxi_candidate_t **out_p, vnx_error_t *error)
{
    if (choice->count == 1) {
        /* The engine reports itself which backend it lacks. */
        snprintf(choice->why, sizeof choice->why, "it was requested");
        *out_p = &choice->candidates[0];
        return (*out_p)->ops->probe((*out_p)->engine, error);
    }
    for (size_t i = 0; i < choice->count; i++) {
        const vnxi_candidate_t *candidate = &choice->candidates[i];
        if (has_all(candidate, backend, choice->wanted) &&
            candidate->ops->probe(candidate->engine, NULL) == VNX_OK) {
            say_why(choice, i, backend);
            *out_p = candidate;
            return VNX_OK;
        }
    }
    return error_none(choice, backend, "vnx_agent_create_backend", error);
}
