// SPDX-License-Identifier: Apache-2.0

/// The bounds on the work and memory that a guest can demand of the controller.
enum XHCILimits {
    // MARK: - TDs

    /// Link TRBs in one TD, or before one command. A ring with more in a row is a loop without
    /// content.
    static let linkTRBsPerTD = 256
    /// TRBs of one TD.
    static let trbsPerTD = 4096
    /// Data bytes of one TD.
    static let bytesPerTD = 64 << 20
    /// Bytes of staging memory in all transfers: for guest memory that this process cannot access
    /// directly, and for the Data Stage of control requests that the guest queues in several TDs.
    static let stagingBytes = 256 << 20

    // MARK: - Transfers in flight

    /// TDs that one endpoint has in flight; a control endpoint has one. Each stream may have one
    /// beyond this limit.
    static let transfersInFlight = 32
    /// Data bytes that one endpoint has in flight; the last TD may exceed it.
    static let bytesInFlight = 8 << 20
    /// TRBs that one endpoint has in flight; the last TD may exceed it.
    static let trbsInFlight = 8192

    // MARK: - Streams

    /// Streams of one endpoint.
    static let streamsPerEndpoint = 256
    /// Stream doorbells that wait to be serviced.
    static let streamDoorbells = 16384
    /// Stream doorbells serviced in one pass.
    static let streamDoorbellsPerPass = 256

    // MARK: - Isochronous transfers

    /// TDs that one isochronous endpoint has in flight.
    static let isochronousInFlight = 256
    /// Isochronous TDs of one endpoint that are read before they are due.
    static let isochronousAhead = 64
    /// Frames that a Frame ID may be ahead of MFINDEX (xHCI 4.11.2.5).
    static let isochronousFramesAhead: Int64 = 895
    /// Microframes by which the completion of an isochronous TD that requests no interrupt may be
    /// late.
    static let isochronousDelay: Int64 = 8
    /// Microframes of service intervals that are caught up with after the process was late. Earlier
    /// intervals are lost.
    static let isochronousLag: Int64 = 800

    // MARK: - Work in one call of `service`

    /// Commands executed in one service pass.
    static let commandsPerPass = 64
    /// Passes over completions, commands and endpoints in one call of `service`.
    static let passesPerService = 16
    /// Work of one endpoint in a pass before the next endpoint is serviced. A unit is a TRB loaded,
    /// whether or not its TD is complete, or a page of data.
    static let workPerEndpoint = 64
    /// Work of all endpoints in one call of `service`; the last transfer may exceed it. It takes
    /// about 100 µs, during which the guest's register accesses wait.
    static let workPerService = 128
    /// Messages of devices (completions, disconnections, remote wake-ups) handled in one pass.
    static let messagesPerPass = 256

    // MARK: - Events

    /// Events that may wait for space in one event ring. While a ring has this many, no command is
    /// executed. Transfers do not reach the limit: no TD is retired while its events would wait.
    static let waitingEvents = 1024
    /// TRBs of an event ring segment (xHCI 6.5).
    static let trbsPerEventSegment = 4096

    // MARK: - Timeouts

    /// The time that Stop Endpoint waits until the device has completed the cancelled transfers,
    /// before their memory is revoked. FreeBSD expects a command to complete in 100 ms.
    static let cancelTimeout = Duration.milliseconds(40)
    /// The time that a halt waits until devices have completed the cancelled transfers, before
    /// their memory is revoked and HCH is set. The controller must halt in 16 ms (xHCI 5.4.1.1);
    /// Linux waits 32 ms.
    static let haltTimeout = Duration.milliseconds(16)
}
