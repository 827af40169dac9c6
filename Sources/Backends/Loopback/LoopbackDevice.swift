// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import USB

/// A device that does what it is asked: in one configuration it gives and takes patterned data on
/// endpoints of each kind, in the other what comes OUT goes back IN.
///
/// Nearly every transfer is answered while it is submitted. What cannot be waits at its endpoint, in
/// order.
final class LoopbackDevice: USBDevice {
    let speed: USBSpeed
    let summary: String

    private let settings: LoopbackSettings
    private let loop: any EventLoop
    private let logger: Logger
    private weak var port: (any USBPort)?
    private var controlPipe: DefaultControlPipe
    /// By the raw value of the pipe.
    private var pipes = Pipe.allCases.map { _ in PipeState() }
    private var queue: PacketQueue
    /// What vendor's request 0x5b left for 0x5c.
    private var scratch: [UInt8] = []
    private var wrongBytes = 0

    private let bulkPattern: DataPattern
    private let interruptPattern: DataPattern
    private let isoPattern: DataPattern

    init(_ settings: LoopbackSettings, loop: any EventLoop, logger: Logger) {
        self.settings = settings
        self.loop = loop
        self.logger = logger
        speed = settings.speed.speed
        summary = "loopback test device, \(settings.speed.rawValue) speed"
        controlPipe = DefaultControlPipe(LoopbackDescriptors.description(settings))
        queue = PacketQueue(maxPacketSize: settings.bulkPacket)
        bulkPattern = DataPattern(settings.pattern, maxPacketSize: settings.bulkPacket)
        interruptPattern = DataPattern(settings.pattern, maxPacketSize: settings.interruptPacket)
        isoPattern = DataPattern(settings.pattern, maxPacketSize: settings.isoPacket)
    }

    // MARK: - USBDevice

    func attach(to port: any USBPort) {
        self.port = port
        wrongBytes = 0
        restart()
    }

    func detached() {
        port = nil
        for index in pipes.indices { pipes[index] = PipeState() }
        restart()
    }

    func reset() {
        restart()
        for pipe in Pipe.allCases { endAll(pipe, .cancelled) }
    }

    /// As just plugged in, but for the transfers.
    private func restart() {
        controlPipe.reset()
        queue.removeAll()
        scratch = []
    }

    func submit(_ transfer: Transfer) {
        guard let pipe = Pipe(transfer.endpoint), exists(pipe) else {
            complete(transfer, .failed)
            return
        }
        var pending = PendingTransfer(transfer: transfer)
        if !pipes[pipe.rawValue].waiting.isEmpty || !attempt(&pending, pipe) {
            pipes[pipe.rawValue].waiting.append(pending)
        }
        moveLooped(after: pipe)
    }

    func cancel(_ id: Transfer.ID) {
        for pipe in Pipe.allCases {
            guard
                let place = pipes[pipe.rawValue].waiting.firstIndex(where: { $0.transfer.id == id })
            else { continue }
            let pending = pipes[pipe.rawValue].waiting.remove(at: place)
            complete(pending.transfer, .cancelled, pending.moved)
            if place == 0 { advance(pipe) }
            return
        }
    }

    // MARK: - Endpoints

    private var isLoopback: Bool { controlPipe.configuration == LoopbackDescriptors.loopback }

    /// Whether the present configuration and setting have the endpoint.
    private func exists(_ pipe: Pipe) -> Bool {
        switch pipe {
        case .control: true
        case .bulkIn, .bulkOut: controlPipe.configuration != 0
        default:
            controlPipe.configuration == LoopbackDescriptors.sourceSink
                && controlPipe.alternateSetting(ofInterface: 0) == 1
        }
    }

    /// Answers what waits at an endpoint, as far as that is possible now.
    private func advance(_ pipe: Pipe) {
        while var pending = pipes[pipe.rawValue].waiting.first {
            let isDone = attempt(&pending, pipe)
            guard isDone else {
                pipes[pipe.rawValue].waiting[0] = pending
                return
            }
            pipes[pipe.rawValue].waiting.removeFirst()
        }
    }

    /// What went into the queue may be what an IN transfer waits for; what left it makes room.
    private func moveLooped(after pipe: Pipe) {
        guard pipe.isBulk, isLoopback else { return }
        var changes: UInt64
        repeat {
            changes = queue.changes
            advance(.bulkIn)
            advance(.bulkOut)
        } while queue.changes != changes
    }

    /// - Returns: whether the transfer has been answered.
    private func attempt(_ pending: inout PendingTransfer, _ pipe: Pipe) -> Bool {
        let transfer = pending.transfer
        if case .control(let setup) = transfer.kind {
            answer(setup, transfer)
            return true
        }
        if controlPipe.isHalted(pipe.address), !pipe.isIsochronous {
            complete(transfer, .stalled, pending.moved)
            return true
        }
        if isLoopback {
            let isDone =
                pipe == .bulkIn
                ? queue.take(
                    into: transfer.buffer, moved: &pending.moved, limit: transfer.buffer.count)
                : queue.put(transfer.buffer, moved: &pending.moved)
            if isDone { complete(transfer, .completed, pending.moved) }
            return isDone
        }
        if pipe.isIn { source(transfer, pipe) } else { sink(transfer, pipe) }
        return true
    }

    private func pattern(_ pipe: Pipe) -> DataPattern {
        switch pipe {
        case .interruptIn, .interruptOut: interruptPattern
        case .isoIn, .isoOut: isoPattern
        default: bulkPattern
        }
    }

    /// There is always as much as is asked for, on an isochronous endpoint what an interval holds.
    private func source(_ transfer: Transfer, _ pipe: Pipe) {
        var count = transfer.buffer.count
        if pipe == .isoIn { count = min(count, settings.isoBytesPerInterval) }
        pattern(pipe).fill(transfer.buffer, count: count)
        complete(transfer, .completed, count)
    }

    /// Takes everything. The packet with a wrong byte is the last before the endpoint halts: if it is
    /// the transfer's last too, only the next one meets the stall.
    private func sink(_ transfer: Transfer, _ pipe: Pipe) {
        let count = transfer.buffer.count
        guard let wrong = pattern(pipe).firstDifference(in: transfer.buffer) else {
            complete(transfer, .completed, count)
            return
        }
        tell(wrong, pipe)
        // Isochronous transfers have no handshake, so they cannot be refused.
        guard !pipe.isIsochronous else {
            complete(transfer, .completed, count)
            return
        }
        controlPipe.halt(pipe.address)
        let packet = pipe == .bulkOut ? settings.bulkPacket : settings.interruptPacket
        let accepted = min(count, (wrong.offset / packet + 1) * packet)
        complete(transfer, accepted < count ? .stalled : .completed, accepted)
    }

    private func tell(_ wrong: (offset: Int, byte: UInt8), _ pipe: Pipe) {
        wrongBytes += 1
        let level: Logger.Level = wrongBytes > Limits.wrongBytesLogged ? .debug : .notice
        let consequence = pipe.isIsochronous ? "" : ": the endpoint halts"
        logger.log(
            level: level,
            "\(summary): byte \(wrong.offset) of a transfer to \(pipe.address.hexadecimal) is \(wrong.byte), which is not the pattern '\(settings.pattern.rawValue)'\(consequence)"
        )
    }

    /// Ends all that waits at an endpoint.
    private func endAll(_ pipe: Pipe, _ status: Transfer.Status) {
        let waiting = pipes[pipe.rawValue].waiting
        pipes[pipe.rawValue] = PipeState()
        for pending in waiting { complete(pending.transfer, status, pending.moved) }
    }

    private func complete(_ transfer: Transfer, _ status: Transfer.Status, _ count: Int = 0) {
        port?.complete(transfer.completion(status, transferred: count))
    }

    // MARK: - Control pipe

    private func answer(_ setup: SetupPacket, _ transfer: Transfer) {
        switch controlPipe.handle(transfer, setup) {
        case .answered(let completion, let change):
            port?.complete(completion)
            switch change {
            case .configuration, .alternateSetting:
                // The endpoints that transfers were for are others now.
                queue.removeAll()
                for pipe in Pipe.allCases where pipe != .control { endAll(pipe, .failed) }
            case .haltSet(let endpoint), .haltCleared(let endpoint):
                if let pipe = Pipe(endpoint) { advance(pipe) }
            case nil: break
            }
        case .forDevice: port?.complete(answerVendor(setup, transfer))
        }
    }

    /// The two requests of test devices: 0x5b leaves bytes with the device, 0x5c fetches them.
    private func answerVendor(
        _ setup: SetupPacket, _ transfer: Transfer
    ) -> Transfer.Completion {
        guard setup.kind == .vendor, setup.recipient == .device, setup.value == 0,
            setup.index == 0
        else { return transfer.completion(.stalled) }
        switch (setup.request, setup.direction) {
        case (0x5b, .out):
            scratch = transfer.buffer.bytes()
            return transfer.completion(.completed, transferred: scratch.count)
        case (0x5c, .in):
            return transfer.completion(sending: scratch, for: setup)
        default:
            return transfer.completion(.stalled)
        }
    }
}

extension EndpointAddress {
    /// As `lsusb` and kernels write it.
    var hexadecimal: String {
        "0x" + (rawValue < 0x10 ? "0" : "") + String(rawValue, radix: 16)
    }
}
