# In the folder `rtl` of a bundle: synthesis, placement and routing of the accelerator by Vivado, out of context, for the
# part and the clock in settings.tcl, with the reports that `quasar hw calibrate` reads:
#
#     vivado -mode batch -source vivado.tcl
#
# THIS SCRIPT HAS NEVER BEEN RUN: it was written without a Vivado at hand. Clock, LUT and FF of the accelerator are
# estimates until somebody has run it.
set folder [file dirname [file normalize [info script]]]
source [file join $folder settings.tcl]
set build [file join $folder build]
file mkdir $build

read_verilog -sv [glob [file join $folder *.sv]]
set clock [open [file join $build clock.xdc] w]
puts $clock "create_clock -name clk -period $period_ns \[get_ports clk\]"
close $clock
read_xdc -mode out_of_context [file join $build clock.xdc]

set generics {}
foreach parameter $parameters { lappend generics -generic $parameter }
synth_design -top $top -part $part -mode out_of_context {*}$generics
opt_design
place_design
phys_opt_design
route_design

report_utilization -file [file join $build utilization.rpt]
report_timing_summary -file [file join $build timing.rpt]
puts "next: quasar hw calibrate $build/utilization.rpt $build/timing.rpt --accelerator [file join $folder .. cost.json] \
--device $device --parts \"$parts\" --out my-$device.yaml"
