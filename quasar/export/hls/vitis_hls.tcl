# C simulation and synthesis by Vitis HLS, in the folder of these files:  vitis_hls -f vitis_hls.tcl
#
# This script was never run: the kernel has been compiled and compared by g++ alone. Resources, initiation intervals
# and the clock that Vitis reaches are not known.
source settings.tcl
if {$part eq ""} {
    puts "settings.tcl names no part; set it to that of your device"
    exit 2
}
set folder [pwd]
open_project -reset project
set_top quasar_vit
add_files quasar_vit.cpp -cflags "-std=c++14"
add_files -tb bench.cpp -cflags "-std=c++14"
open_solution -reset solution -flow_target vitis
set_part $part
create_clock -period $clock_period_ns
csim_design -argv "check $folder/../weights.bin $folder/images.bin $folder/logits.bin"
csynth_design
exit
