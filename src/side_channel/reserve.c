#include "side_channel/reserve.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

int
vnxi_reserve_open(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void
vnxi_reserve_refuse(int reserve, int fd, vnxi_side_stats_t *stats)
{
    close(reserve);
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (client >= 0) {
        vnxi_stat_add(&stats->accepted);
        vnxi_stat_add(&stats->evicted);
        close(client);
    }
}
