/*
 * The engines of this process by instance id, so that agents of one process
 * find each other without a system call.  Few, and looked up only when
 * metadata is loaded: a list.
 */
#include <string.h>

#include "base/fork.h"
#include "engine/native/native.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static vnxi_engine_t *engines; /* protected by lock */

/* The parent's engines are nobody's here, and the lock may be held. */
static void
forget_in_child(void)
{
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    engines = NULL;
}

void
vnxi_directory_add(vnxi_engine_t *engine)
{
    vnxi_fork_on_child(forget_in_child);
    pthread_mutex_lock(&lock);
    engine->next = engines;
    engines = engine;
    pthread_mutex_unlock(&lock);
}

void
vnxi_directory_remove(vnxi_engine_t *engine)
{
    pthread_mutex_lock(&lock);
    for (vnxi_engine_t **at = &engines; *at != NULL; at = &(*at)->next) {
        if (*at == engine) {
            *at = engine->next;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

vnxi_engine_t *
vnxi_directory_find(const unsigned char *instance)
{
    pthread_mutex_lock(&lock);
    vnxi_engine_t *engine = engines;
    while (engine != NULL &&
           memcmp(engine->info.instance, instance, VNXI_SHM_ID_SIZE) != 0) {
        engine = engine->next;
    }
    if (engine != NULL) {
        vnxi_native_retain(engine);
    }
    pthread_mutex_unlock(&lock);
    return engine;
}
