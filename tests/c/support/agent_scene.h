/*
 * Two agents of this process, "here" and "there", with a region each: there is
 * filled, here is zero.
 */
#ifndef AGENT_SCENE_H
#define AGENT_SCENE_H

#include "agent_fixture.h"

typedef struct scene {
    vnx_agent_t *here, *there;
    unsigned char *ours, *theirs;
    vnx_dlist_t *local, *remote; /* NULL until a test's setup makes them */
} scene_t;

/* Neither agent knows the other. */
static inline scene_t *
scene_open(size_t size, unsigned seed)
{
    scene_t *s = calloc(1, sizeof *s);
    s->ours = calloc(1, size);
    s->theirs = malloc(size);
    fill(s->theirs, size, seed);
    s->here = make_agent("here");
    s->there = make_agent("there");
    register_at(s->here, s->ours, size);
    register_at(s->there, s->theirs, size);
    return s;
}

static inline int
scene_close(void **state)
{
    scene_t *s = *state;
    vnx_dlist_release(s->local);
    vnx_dlist_release(s->remote);
    vnx_agent_release(s->here);
    vnx_agent_release(s->there);
    free(s->ours);
    free(s->theirs);
    free(s);
    return 0;
}

#endif
