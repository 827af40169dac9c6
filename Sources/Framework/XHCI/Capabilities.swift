// SPDX-License-Identifier: Apache-2.0

/// What a controller offers its driver; fixed when the controller is made.
public struct Capabilities: Sendable {
    /// Device slots, 1...255.
    public var slots = 64
    /// Root hub ports for low, full and high speed. They have the numbers 1...`usb2Ports`.
    public var usb2Ports = 8
    /// Root hub ports for SuperSpeed, numbered after those of USB 2.
    public var usb3Ports = 8
    /// Interrupters, each with a vector of its own, 1...16.
    public var interrupters = 8
    /// 2^n segments of an event ring, n in 0...15.
    public var eventRingSegmentsLog2 = 4

    /// MaxPSASize: a primary stream array has up to 2^(n+1) entries, as many as an endpoint may have
    /// streams here.
    static let maxPrimaryStreamsLog2: UInt32 = 7

    public init() {}

    /// All ports of the root hub.
    var ports: Int { usb2Ports + usb3Ports }

    /// Checks what the program chose.
    func validate() {
        precondition((1...255).contains(slots), "\(slots) device slots")
        precondition((0...31).contains(usb2Ports), "\(usb2Ports) USB 2 ports")
        precondition((0...31).contains(usb3Ports), "\(usb3Ports) USB 3 ports")
        precondition(ports > 0, "no ports")
        precondition((1...16).contains(interrupters), "\(interrupters) interrupters")
        precondition(
            (0...15).contains(eventRingSegmentsLog2),
            "2^\(eventRingSegmentsLog2) event ring segments")
    }
}
