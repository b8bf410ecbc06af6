/* The two calls of libcuda.so.1 that autograd makes: no context exists. */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "pretended"; return 0; }
