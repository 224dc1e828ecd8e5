#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "base/words.h"

static const char *const names[] = {"ERROR", "WARNING", "INFO", "DEBUG"};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnxi_log_level_t threshold = VNXI_LOG_WARNING;

static void
read_level(void)
{
    const char *value = getenv("VLLM_NIXL_LOG_LEVEL");
    if (value == NULL || value[0] == '\0') {
        return;
    }
    for (int i = 0; i <= VNXI_LOG_DEBUG; i++) {
        if (strcasecmp(value, names[i]) == 0) {
            threshold = (vnxi_log_level_t)i;
            return;
        }
    }
    fprintf(stderr,
            "vllm_nixl WARNING: VLLM_NIXL_LOG_LEVEL has no level '%.32s': "
            "%s\n",
            value, vnxi_words(value, names, VNXI_LOG_DEBUG + 1));
}

void
vnxi_log(vnxi_log_level_t level, const char *format, ...)
{
    char text[1024];
    va_list args;

    pthread_once(&once, read_level);
    if (level > threshold) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "vllm_nixl %s: %s\n", names[level], text);
}
