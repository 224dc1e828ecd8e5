#include "net/loop.h"

struct event_base *
vnxi_loop_base_new(void)
{
    struct event_config *config = event_config_new();
    struct event_base *base = NULL;
    if (config == NULL) {
        return NULL;
    }
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV);
    base = event_base_new_with_config(config);
    event_config_free(config);
    return base;
}

void
vnxi_loop_base_free(struct event_base *base)
{
    if (base != NULL) {
        event_base_loop(base, EVLOOP_NONBLOCK);
        event_base_free(base);
    }
}

void
vnxi_loop_event_free(struct event *event)
{
    if (event != NULL) {
        event_free(event);
    }
}

void
vnxi_loop_on_stop(evutil_socket_t fd, short what, void *base)
{
    (void)fd, (void)what;
    event_base_loopbreak(base);
}
