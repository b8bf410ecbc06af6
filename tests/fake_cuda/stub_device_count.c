/* In the place of c10::cuda::device_count(): a number that Python sets. Preloaded. */
static signed char count = 0;
signed char _ZN3c104cuda12device_countEv(void) { return count; }
void pretend_devices(int devices) { count = (signed char)devices; }
