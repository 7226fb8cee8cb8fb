/* Remembers what a crash would leave: preloaded into a process, it keeps a copy of every file and every folder's listing
 * as they were when they were last synced. What was written and not synced is in no copy.
 *
 *   cc -shared -fPIC -O1 -o crash_shadow.so crash_shadow.c -ldl
 *   CRASH_SHADOW=folder LD_PRELOAD=crash_shadow.so python ...
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void publish(const char *draft, const char *kind, unsigned long long inode)
{
    char name[4096];
    snprintf(name, sizeof name, "%s/%s-%llu", getenv("CRASH_SHADOW"), kind, inode);
    rename(draft, name);
}

static void remember(int descriptor)
{
    struct stat status;
    char draft[4096], path[64];
    if (!getenv("CRASH_SHADOW") || fstat(descriptor, &status) != 0)
        return;
    snprintf(draft, sizeof draft, "%s/.draft-%d", getenv("CRASH_SHADOW"), (int)getpid());
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    FILE *out = fopen(draft, "wb");
    if (!out)
        return;
    if (S_ISDIR(status.st_mode)) {
        DIR *folder = opendir(path);
        struct dirent *entry;
        while (folder && (entry = readdir(folder)))
            if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
                fprintf(out, "%llu %s\n", (unsigned long long)entry->d_ino, entry->d_name);
        if (folder)
            closedir(folder);
        fclose(out);
        publish(draft, "folder", status.st_ino);
        return;
    }
    /* Through the same descriptor: opening and closing the file once more would drop the locks that SQLite holds. */
    char block[65536];
    ssize_t count;
    off_t at = 0;
    while ((count = pread(descriptor, block, sizeof block, at)) > 0) {
        fwrite(block, 1, count, out);
        at += count;
    }
    fclose(out);
    publish(draft, "file", status.st_ino);
}

int fsync(int descriptor)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int result = real(descriptor);
    if (result == 0)
        remember(descriptor);
    return result;
}

int fdatasync(int descriptor)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int result = real(descriptor);
    if (result == 0)
        remember(descriptor);
    return result;
}
