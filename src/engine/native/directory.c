/*
 * The engines of this process by instance id, so that agents of one process
 * find each other without a system call.  A list is enough: there are few, and
 * they are looked up only when metadata is loaded.
 */
#include <string.h>

#include "base/fork.h"
#include "base/mutex.h"
#include "engine/native/native.h"

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_DIRECTORY);
static vnxi_engine_t *engines; /* protected by lock */

/* The child does not own the parent's engines, and the lock may be held. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_DIRECTORY);
    engines = NULL;
}

void
vnxi_directory_add(vnxi_engine_t *engine)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&lock);
    engine->next = engines;
    engines = engine;
    vnxi_mutex_unlock(&lock);
}

void
vnxi_directory_remove(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&lock);
    for (vnxi_engine_t **at = &engines; *at != NULL; at = &(*at)->next) {
        if (*at == engine) {
            *at = engine->next;
            break;
        }
    }
    vnxi_mutex_unlock(&lock);
}

vnxi_engine_t *
vnxi_directory_find(const unsigned char *instance)
{
    vnxi_mutex_lock(&lock);
    vnxi_engine_t *engine = engines;
    while (engine != NULL && memcmp(engine->identity.instance, instance,
                                    VNXI_INSTANCE_SIZE) != 0) {
        engine = engine->next;
    }
    if (engine != NULL) {
        vnxi_native_retain(engine);
    }
    vnxi_mutex_unlock(&lock);
    return engine;
}
