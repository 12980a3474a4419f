// The gains and biases of the channels of a LayerNorm: groups of LANES channels, 6 bytes each (gain, then bias), each
// group in whole beats of the stream. Groups are counted as they become readable; a read takes one cycle.
module quasar_channels #(
    parameter int LANES = 8,
    parameter int PW = 64,
    parameter int GROUPS = 128,
    parameter int GROUP_W = 7
) (
    input  logic                clk,
    input  logic                rst,
    input  logic                start,
    input  logic [15:0]         width,
    input  logic                p_valid,
    output logic                p_ready,
    input  logic [PW-1:0]       p_data,
    output logic [GROUP_W:0]    loaded,
    input  logic                read,
    input  logic [GROUP_W-1:0]  group,
    output logic [48*LANES-1:0] channels
);
    localparam int BEATS = (48 * LANES + PW - 1) / PW;
    localparam int BEAT_W = BEATS > 1 ? $clog2(BEATS) : 1;

    logic              active, write;
    logic [15:0]       left;          // channels that are still to come
    logic [BEAT_W-1:0] beat;
    wire last_beat = beat == BEAT_W'(BEATS - 1);
    wire fire = p_valid && p_ready;
    assign p_ready = active;

    logic [BEATS*PW-1:0] assembled;
    for (genvar i = 0; i < BEATS; i++) begin : g_beat
        always_ff @(posedge clk) if (fire && beat == BEAT_W'(i)) assembled[i*PW+:PW] <= p_data;
    end
    quasar_memory #(.WIDTH(48 * LANES), .DEPTH(GROUPS)) memory (
        .clk, .write, .write_address(loaded[GROUP_W-1:0]), .write_data(assembled[48*LANES-1:0]),
        .read, .read_address(group), .read_data(channels)
    );

    always_ff @(posedge clk) begin
        if (rst) begin
            active <= 1'b0;
            write <= 1'b0;
        end else begin
            if (start) active <= 1'b1;
            else if (fire && last_beat && left <= 16'(LANES)) active <= 1'b0;
            write <= fire && last_beat;
        end
        if (start) begin
            left <= width;
            beat <= '0;
            loaded <= '0;
        end else begin
            if (fire) begin
                beat <= last_beat ? '0 : beat + 1'b1;
                if (last_beat) left <= left - 16'(LANES);
            end
            if (write) loaded <= loaded + 1'b1;
        end
    end
endmodule
