/*
 * Event loops that belong to one thread each (libevent).
 */
#ifndef VNXI_NET_LOOP_H
#define VNXI_NET_LOOP_H

#include <event2/event.h>

/* A base for one thread: without locks, and no variable of the environment
 * chooses its kernel interface.  NULL: it cannot be had. */
struct event_base *vnxi_loop_base_new(void);

/* Free it, after everything that hung on it: what was freed with a call still
 * to come (a bufferevent) is gone after one more round.  NULL is allowed. */
void vnxi_loop_base_free(struct event_base *base);

/* event_free(); NULL is allowed. */
void vnxi_loop_event_free(struct event *event);

/* What an event of the loop calls that shall end it; `base` is the base. */
void vnxi_loop_on_stop(evutil_socket_t fd, short what, void *base);

#endif
