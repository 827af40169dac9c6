// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage
internal import USB

/// A USB stick: the device that joins control pipe, Bulk-Only Transport, logical unit and image.
///
/// Transfers wait in a queue for each endpoint. ``advance()`` takes from them whatever the transport
/// can use now. Bytes move between the image and the transfer's memory without a copy in between:
/// at once if the page cache has them, otherwise on the worker thread. Only one movement is under
/// way at a time, and the bulk pipes wait for it, so that everything happens in the order of the
/// guest; control requests are answered meanwhile.
final class StorageDevice: USBDevice {
    let speed: USBSpeed
    var summary: String

    var image: any DiskImage
    let worker: Worker
    let logger: Logger
    weak var port: (any USBPort)?
    var controlPipe: DefaultControlPipe
    var transport: BulkOnlyTransport
    var unit: LogicalUnit

    var inTransfers: [Transfer] = []
    var outTransfers: [Transfer] = []
    /// What the data stage moves.
    var command: Command?
    /// The worker moves bytes or works for a command.
    var isBusy = false
    /// Ends the job that the worker has, if it is a long one.
    var cancellation: Cancellation?
    /// The operator changes the medium; see ``changeMedium(to:force:then:)``.
    var isChangingMedium = false
    /// A flush that the host does not wait for.
    var isFlushingInBackground = false
    /// The operator learns of the first error; a guest cannot fill the log with more.
    var hasToldOfErrors = false
    /// Counts resets of the transport: what was begun before the last one has no say any more.
    var era: UInt64 = 0
    /// Counts the times it was plugged in or out.
    var attachment: UInt64 = 0
    /// Whether the file system can tell that a read or a write would wait.
    var canTryReading = true
    var canTryWriting = true

    /// A command with a data stage.
    enum Command {
        case reply([UInt8])
        case read(Extent)
        case write(Extent, durably: Bool)
        case compare(Extent)
        case parameters(CommandBlock, [UInt8])
    }

    init(
        image: any DiskImage, unit: LogicalUnit, speed: USBSpeed, summary: String, worker: Worker,
        logger: Logger
    ) {
        self.image = image
        self.unit = unit
        self.speed = speed
        self.summary = summary
        self.worker = worker
        self.logger = logger
        controlPipe = DefaultControlPipe(
            StorageDescriptors.description(speed: speed, identity: unit.identity))
        transport = BulkOnlyTransport(
            maxPacketSize: StorageDescriptors.maxPacketSize(at: speed))
    }

    /// Whether the worker has nothing to do for this device.
    var isIdle: Bool { worker.pendingJobs == 0 }

    // MARK: - USBDevice

    func attach(to port: any USBPort) {
        self.port = port
        attachment += 1
        restart()
    }

    func detached() {
        port = nil
        attachment += 1
        inTransfers = []
        outTransfers = []
        restart()
    }

    func reset() {
        let waiting = inTransfers + outTransfers
        inTransfers = []
        outTransfers = []
        restart()
        for transfer in waiting { complete(transfer, .cancelled, 0) }
    }

    /// The state after power-on. A movement that is under way ends by itself.
    private func restart() {
        controlPipe.reset()
        unit.reset()
        resetTransport()
    }

    private func resetTransport() {
        era += 1
        cancellation?.cancel()
        command = nil
        transport.reset()
    }

    func submit(_ transfer: Transfer) {
        if case .control(let setup) = transfer.kind {
            control(transfer, setup)
        } else if controlPipe.configuration == 0 {
            // The endpoints do not exist yet.
            complete(transfer, .failed, 0)
        } else if transfer.endpoint == StorageDescriptors.inEndpoint {
            inTransfers.append(transfer)
        } else if transfer.endpoint == StorageDescriptors.outEndpoint {
            outTransfers.append(transfer)
        } else {
            complete(transfer, .failed, 0)
        }
        advance()
    }

    func cancel(_ id: Transfer.ID) {
        // A movement under way ends as itself; its memory is in use until then.
        if let index = inTransfers.firstIndex(where: { $0.id == id }) {
            complete(inTransfers.remove(at: index), .cancelled, 0)
        } else if let index = outTransfers.firstIndex(where: { $0.id == id }) {
            complete(outTransfers.remove(at: index), .cancelled, 0)
        }
    }

    // MARK: - Control pipe

    private func control(_ transfer: Transfer, _ setup: SetupPacket) {
        switch controlPipe.handle(transfer, setup) {
        case .answered(let completion, let change):
            port?.complete(completion)
            switch change {
            case .configuration, .alternateSetting: resetTransport()
            case .haltCleared where transport.phase == .broken:
                // Only a reset of the transport gets out of this.
                controlPipe.halt(StorageDescriptors.inEndpoint)
                controlPipe.halt(StorageDescriptors.outEndpoint)
            default: break
            }
        case .forDevice: classRequest(transfer, setup)
        }
    }

    /// The two requests of Bulk-Only Transport (3.1, 3.2).
    private func classRequest(_ transfer: Transfer, _ setup: SetupPacket) {
        let isOurs =
            setup.kind == .class && setup.recipient == .interface && setup.index == 0
            && setup.value == 0 && controlPipe.configuration != 0
        switch (setup.request, setup.direction, setup.length) {
        case (0xff, .out, 0) where isOurs:
            logger.debug("\(summary): reset of the bulk-only transport")
            resetTransport()
            complete(transfer, .completed, 0)
        case (0xfe, .in, 1...) where isOurs:
            // Get Max LUN: logical unit 0 alone.
            port?.complete(transfer.completion(sending: [0], for: setup))
        default:
            complete(transfer, .stalled, 0)
        }
    }

    // MARK: - Bulk pipes

    /// Uses waiting transfers for as long as that is possible.
    func advance() {
        while !isBusy, takeOut() || takeIn() {}
    }

    /// Uses the next OUT transfer; false if there is none or it must wait.
    private func takeOut() -> Bool {
        guard !outTransfers.isEmpty else { return false }
        if controlPipe.isHalted(StorageDescriptors.outEndpoint) {
            complete(outTransfers.removeFirst(), .stalled, 0)
            return true
        }
        // Most calls end here; what a transfer holds is not looked at in vain.
        guard transport.takesOut, let count = outTransfers.first?.buffer.count else { return false }
        switch transport.action(forOut: count) {
        case .wait: return false
        case .command:
            receiveCommand(outTransfers.removeFirst())
        case .data(let count):
            receiveData(outTransfers.removeFirst(), count: count)
        case .phaseError:
            command = nil
            transport.finish(.phaseError)
            applyHalts()
            complete(outTransfers.removeFirst(), .stalled, 0)
        }
        return true
    }

    /// Uses the next IN transfer; false if there is none or it must wait.
    private func takeIn() -> Bool {
        guard !inTransfers.isEmpty else { return false }
        if controlPipe.isHalted(StorageDescriptors.inEndpoint) {
            complete(inTransfers.removeFirst(), .stalled, 0)
            return true
        }
        // Most calls end here; what a transfer holds is not looked at in vain.
        guard transport.takesIn, let count = inTransfers.first?.buffer.count else { return false }
        switch transport.action(forIn: count) {
        case .wait: return false
        case .data(let count):
            sendData(inTransfers.removeFirst(), count: count)
        case .status:
            let transfer = inTransfers.removeFirst()
            let status = transport.statusWrapper.bytes
            let count = transfer.buffer.copy(from: status.span)
            transport.statusSent()
            complete(transfer, .completed, count)
        case .babble:
            complete(inTransfers.removeFirst(), .babbled, count)
        }
        return true
    }

    func complete(_ transfer: Transfer, _ status: Transfer.Status, _ count: Int) {
        port?.complete(transfer.completion(status, transferred: count))
    }

    private func applyHalts() {
        let halts = transport.takeHalts()
        if halts.contains(.in) { controlPipe.halt(StorageDescriptors.inEndpoint) }
        if halts.contains(.out) { controlPipe.halt(StorageDescriptors.outEndpoint) }
    }

    // MARK: - Commands

    private func receiveCommand(_ transfer: Transfer) {
        // One byte more than a CBW has is enough to see that it is none.
        let bytes = InlineArray<32, UInt8> { (bytes: inout OutputSpan<UInt8>) in
            transfer.buffer.copy(into: &bytes)
            while !bytes.isFull { bytes.append(0) }
        }
        let count = min(transfer.buffer.count, bytes.count)
        guard let wrapper = transport.receiveCommand(bytes.span.extracting(first: count)) else {
            logger.debug("\(summary): an invalid command block wrapper")
            applyHalts()
            complete(transfer, .stalled, 0)
            return
        }
        complete(transfer, .completed, CommandBlockWrapper.count)
        begin(unit.execute(wrapper.command, at: wrapper.logicalUnit), wrapper.command)
    }

    /// Compares the action with what the host expects, and starts it.
    private func begin(_ action: LogicalUnit.Action, _ block: CommandBlock) {
        let intent: BulkOnlyTransport.Intent
        switch action {
        case .good, .check, .perform: intent = .nothing
        case .reply(let bytes): intent = .send(bytes.count)
        case .read(let extent): intent = .send(extent.byteCount)
        case .write(let extent, _), .compare(let extent): intent = .receive(extent.byteCount)
        case .receiveParameters(let count): intent = .receive(count)
        }
        guard transport.begin(intent) else {
            applyHalts()
            return
        }
        switch action {
        case .good: finish(nil)
        case .reply(let bytes):
            if bytes.isEmpty { finish(nil) } else { command = .reply(bytes) }
        case .read(let extent): command = .read(extent)
        case .write(let extent, let durably): command = .write(extent, durably: durably)
        case .compare(let extent): command = .compare(extent)
        case .receiveParameters: command = .parameters(block, [])
        case .perform(let job): perform(job)
        case .check(let sense): finish(sense)
        }
    }

    /// Ends the command: good, or with the sense data that say why not.
    func finish(_ error: SenseData?) {
        command = nil
        if let error { unit.fail(error) }
        transport.finish(error == nil ? .passed : .failed)
        applyHalts()
    }

    /// Work on the medium without data.
    func perform(_ job: LogicalUnit.MediumJob) {
        let image = image
        let durably = !unit.isWriteCacheEnabled
        let cancellation = Cancellation()
        // One at a time: a guest that asks for more waits for its turn like everybody else.
        if job == .flushInBackground && !isFlushingInBackground {
            isFlushingInBackground = true
            worker.perform {
                image.carryOut(job, durably: durably, unless: cancellation)
            } then: { [self] error in
                isFlushingInBackground = false
                if let error { unit.backgroundJobFailed(error) }
            }
            finish(nil)
            return
        }
        self.cancellation = cancellation
        onWorker(for: nil) {
            image.carryOut(job, durably: durably, unless: cancellation)
        } then: { [self] error in
            // What was cut short by the loss of the medium means nothing.
            let error = cancellation.isCancelled ? .mediumNotPresent : error
            if error == nil { unit.mediumJobEnded(job) }
            finish(error)
        }
    }

    // MARK: - Worker

    /// Runs a job on the worker while the bulk pipes wait, then goes on with the command.
    ///
    /// If the transport was reset meanwhile there is no command any more, and the transfer that the
    /// job worked for is given back as cancelled.
    func onWorker<Result: Sendable>(
        for transfer: Transfer?, _ job: @escaping @Sendable () -> Result,
        then: @escaping (Result) -> Void
    ) {
        isBusy = true
        let era = era
        let attachment = attachment
        // Holding `self` and the transfer keeps the guest's memory until the worker is done.
        worker.perform(job) { [self] result in
            isBusy = false
            if era == self.era {
                then(result)
                if isChangingMedium { abandonCommand() }
            } else if let transfer, attachment == self.attachment {
                complete(transfer, .cancelled, 0)
            }
            advance()
        }
    }
}
